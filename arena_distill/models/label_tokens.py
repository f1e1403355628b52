"""The label-token head: a causal LM says A, B or tie as the next token, and only those three are computed.

The three rows of the output head that belong to the label tokens are put where a sequence classifier has its head.
So a teacher trains, batches and runs as any classifier does; its logits are those of the full vocabulary at the last
position, restricted to three tokens, and no ``[batch, length, vocabulary]`` tensor ever exists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from arena_distill.data.records import CLASSES
from arena_distill.models.backbone import local_directory
from arena_distill.models.classifier import load_classifier
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError

LABEL_TOKENS_FILE = "label_tokens.json"
LABEL_TOKENS_VERSION = 1
_LOGIT_SCALES = ("logits_scaling", "logit_scale", "logits_scale")  # of Granite, Cohere, MiniCPM: not done here
_HEAD, _HEAD_BIAS = "lm_head.weight", "lm_head.bias"


@dataclass(frozen=True)
class LabelTokens:
    """The vocabulary entries that stand for A, B and tie."""

    words: tuple[str, str, str]
    ids: tuple[int, int, int]

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, words: Sequence[str]) -> LabelTokens:
        """Look the words up.

        Raises:
            InputError: a word is not exactly one token of this tokenizer, or two words share one.
        """
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        ids = []
        for word, label in zip(words, CLASSES, strict=True):
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
                known = f"{len(pieces)} tokens" if len(pieces) != 1 else "unknown to it"
                raise InputError(
                    f"{name}: the label word {word!r} for {label} is {known}, and must be one token -> choose three "
                    "words that are one token each (TEACHER_LABEL_WORDS, POSTPRE_LABEL_WORDS), or another tokenizer"
                )
            ids.append(int(pieces[0]))
        if len(set(ids)) < len(ids):
            raise InputError(
                f"{name}: the label words {', '.join(words)} share a token -> choose three that differ "
                "(TEACHER_LABEL_WORDS, POSTPRE_LABEL_WORDS)"
            )
        return cls((words[0], words[1], words[2]), (ids[0], ids[1], ids[2]))

    def save(self, directory: Path) -> None:
        """Write ``label_tokens.json`` beside a model."""
        document = {"schema_version": LABEL_TOKENS_VERSION, "words": self.words, "ids": self.ids}
        write_atomically(directory / LABEL_TOKENS_FILE, json.dumps(document))

    @classmethod
    def load(cls, directory: Path) -> LabelTokens:
        """Read ``label_tokens.json``.

        Raises:
            InputError: it is missing or broken.
        """
        path = directory / LABEL_TOKENS_FILE
        try:
            document = json.loads(path.read_text("utf-8"))
            if document["schema_version"] != LABEL_TOKENS_VERSION:
                raise ValueError(f"schema version {document['schema_version']} is not {LABEL_TOKENS_VERSION}")
            (a, b, tie), (id_a, id_b, id_tie) = document["words"], document["ids"]
            return cls((str(a), str(b), str(tie)), (int(id_a), int(id_b), int(id_tie)))
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing -> this is not a teacher that this project trained") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: broken ({error!r}) -> train the teacher again") from error


class LabelTokenHead(torch.nn.Linear):
    """Three rows of a causal LM's output head; frozen, and soft-capped where the LM's logits are (Gemma-2)."""

    def __init__(self, rows: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> None:
        super().__init__(rows.shape[1], rows.shape[0], bias=bias is not None, device=rows.device, dtype=rows.dtype)
        self.softcap = softcap
        with torch.no_grad():
            self.weight.copy_(rows)
            if bias is not None:
                self.bias.copy_(bias)
        self.requires_grad_(False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[…, 3]`` of hidden states ``[…, H]``, in float32: it costs nothing, and soft labels come of it."""
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            logits = torch.nn.functional.linear(hidden.float(), self.weight.float(), bias)
            return logits if not self.softcap else self.softcap * torch.tanh(logits / self.softcap)


def load_label_token_classifier(name: str, tokenizer: Any, labels: LabelTokens, **options: Any) -> Any:
    """The causal LM ``name`` as a three-way classifier whose head is its own output head at the label tokens.

    Args:
        name: hub name or directory of a causal LM.
        tokenizer: of that model.
        labels: which rows of the output head to take.
        options: passed to ``from_pretrained``.

    Raises:
        InputError: there is no such model, its files are damaged, or it is not a causal LM of a family that
            transformers can also load as a sequence classifier.
    """
    directory = local_directory(name)
    model, fresh = load_classifier(str(directory), tokenizer, **options)
    scaled = [key for key in _LOGIT_SCALES if getattr(model.config, key, None) not in (None, 1, 1.0)]
    if scaled or not isinstance(getattr(model, "score", None), torch.nn.Linear):
        reason = f"scales its logits ({scaled[0]})" if scaled else "has no head that label tokens could take"
        raise InputError(
            f"{name}: {type(model).__name__} {reason} -> name a causal LM such as Llama, Qwen2 or Gemma-2, or use "
            "TEACHER_HEAD=seq_cls"
        )
    if lacking := sorted(fresh - {"score.weight"}):
        raise InputError(f"{name}: lacks weights ({', '.join(lacking[:3])} …) -> copy or download the model again")
    rows, bias = _head_rows(directory, labels.ids, bool(model.config.tie_word_embeddings))
    old = model.score.weight
    model.score = LabelTokenHead(
        rows.to(old.device, old.dtype),
        None if bias is None else bias.to(old.device, old.dtype),
        getattr(model.config, "final_logit_softcapping", None),
    )
    return model


def _head_rows(directory: Path, ids: Sequence[int], tied: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of the output head, read from the checkpoint without loading the rest; with tied weights, embeddings.

    A head in the checkpoint counts even where the configuration says that it is tied, as in transformers.
    """
    places = _tensor_files(directory)
    embedding = next((name for name in places if name.endswith("embed_tokens.weight")), None) if tied else None
    name = _HEAD if _HEAD in places else embedding
    if name is None:
        raise InputError(f"{directory}: has no output head (lm_head) -> name a causal LM, or use TEACHER_HEAD=seq_cls")
    with safe_open(directory / places[name], "pt") as file:
        weights = file.get_slice(name)
        if max(ids) >= weights.get_shape()[0]:
            raise InputError(f"{directory}: the tokenizer's label tokens {ids} are beyond the model's vocabulary")
        rows = torch.cat([weights[token : token + 1] for token in ids])
    if _HEAD_BIAS not in places:
        return rows, None
    with safe_open(directory / places[_HEAD_BIAS], "pt") as file:
        return rows, file.get_tensor(_HEAD_BIAS)[list(ids)]


def _tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> file that holds it."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return dict(json.loads(index.read_text("utf-8"))["weight_map"])
    single = directory / "model.safetensors"
    if not single.is_file():
        raise InputError(f"{directory}: holds no safetensors weights -> save the model as safetensors first")
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single.name)
