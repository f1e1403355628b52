"""Three-way sequence classifiers: loading them, and what their inputs look like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arena_distill.data.prompts import Sequences
from arena_distill.data.records import CLASSES
from arena_distill.runtime.errors import InputError, SettingsError

HEAD_MODULES = ("score", "classifier", "pre_classifier", "pooler")
"""Names that sequence-classification heads go by in transformers; quantization leaves them alone."""


_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")  # else an empty one is made up


def load_tokenizer(name: str, fast: bool = True) -> Any:
    """The tokenizer of a backbone, with a padding token (the end-of-text token where it has none of its own)."""
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not any(p for pattern in _TOKENIZER_FILES for p in Path(name).glob(pattern)):
        raise InputError(f"{name}: holds no tokenizer -> copy the tokenizer files of the model into it")
    with hub_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=fast)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: the tokenizer has neither a padding nor an end-of-text token -> add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(name: str, tokenizer: Any, **options: Any) -> tuple[Any, frozenset[str]]:
    """A classifier with three labels on the backbone ``name``.

    Args:
        name: hub name or directory.
        tokenizer: its padding token becomes the model's.
        options: passed to ``from_pretrained`` (``dtype``, ``quantization_config``, …).

    Returns:
        The model, and the names of its weights that are new (a head of another size or none at all).

    Raises:
        InputError: there is no such model, or its files are damaged.
    """
    from transformers import AutoModelForSequenceClassification

    with hub_errors(name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=len(CLASSES),
            id2label=dict(enumerate(CLASSES)),
            label2id={label: index for index, label in enumerate(CLASSES)},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    check_vocabulary(model, tokenizer, name)
    model.config.pad_token_id = tokenizer.pad_token_id
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    return model, frozenset({*report["missing_keys"], *mismatched})


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for."""
    if len(tokenizer) > (known := token_table_size(model)):
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model knows {known} -> the two do not belong "
            "together; copy the model's own tokenizer files into its directory"
        )


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what loading a model can raise into an InputError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be loaded ({reason}) -> check the name, the files, or the network") from error
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise InputError(f"{name}: damaged weights ({error}) -> copy or download the model again") from error
        raise


def longest_input(model: torch.nn.Module) -> int | None:
    """Most tokens that the model can read, or None if its positions have no table that ends."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's first positions are taken by the padding index.
            return int(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return None


def check_lengths(model: torch.nn.Module, lengths: list[int], setting: str) -> None:
    """Refuse length limits beyond the model's position table.

    Raises:
        SettingsError: names the setting and the model's limit.
    """
    limit = longest_input(model)
    if limit is not None and max(lengths) > limit:
        raise SettingsError(
            f"{setting}: this model reads at most {limit} tokens, not {max(lengths)} -> use {limit} or less"
        )


def token_table_size(model: Any) -> int:
    """Number of tokens that the model's input embedding knows."""
    return int(model.get_input_embeddings().num_embeddings)


def token_types(model: torch.nn.Module) -> int:
    """Size of the model's token type vocabulary, 0 if it has none."""
    return int(getattr(model.config, "type_vocab_size", 0) or 0)


def pad_batch(sequences: Sequences, rows: np.ndarray, pad_id: int, multiple_of: int = 1) -> dict[str, torch.Tensor]:
    """Model inputs for some sequences, padded on the right to the longest of them.

    Returns:
        ``input_ids``, ``attention_mask`` and, where the format has them, ``token_type_ids``; int64 ``[batch, length]``.
    """
    lengths = sequences.ids.lengths[rows]
    width = -(-int(lengths.max()) // multiple_of) * multiple_of
    mask = np.arange(width) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([sequences.ids[row] for row in rows])
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    if sequences.segment_ids is not None:
        types = np.zeros(mask.shape, dtype=np.int64)
        types[mask] = np.concatenate([sequences.segment_ids[row] for row in rows])
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch
