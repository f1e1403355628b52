"""The one door to every model: a judge turns canonical rows into three raw logits each, in the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch

from arena_distill.data.batching import token_budget_batches
from arena_distill.data.prompts import Sequences, TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SCHEMA, SWAPPED, TEXT_COLUMNS, Rows
from arena_distill.data.sample import generate
from arena_distill.models.adapters import ADAPTER_CONFIG, nf4_config
from arena_distill.models.classifier import (
    HEAD_MODULES,
    check_lengths,
    load_tokenizer,
    longest_input,
    pad_batch,
    token_table_size,
)
from arena_distill.models.exact_head import is_head
from arena_distill.models.int8_cpu import can_compute_int8, to_int8
from arena_distill.models.label_tokens import LABEL_TOKENS_FILE
from arena_distill.models.probe import check_probe
from arena_distill.models.quantized import is_quantized
from arena_distill.models.saved_model import load_saved_model
from arena_distill.models.unpadded import without_padding
from arena_distill.runtime import heartbeat
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.interruption import checkpointing, stop_if_requested
from arena_distill.runtime.progress import Progress

Quantization = Literal["none", "int8", "nf4"]

CPU_BATCH_TOKENS = 4096  # of a batch at most: larger ones leave the caches, and take up to a third longer
INT8_ROWS = 64  # that show layers of 8 bits the range of their inputs


class Judge(Protocol):
    """Anything that can say which of two answers is better."""

    def logits(self, rows: Rows) -> np.ndarray:
        """Raw logits for A, B and tie, float32 ``[N, 3]``, in the order of ``rows``."""
        ...


class ClassifierJudge:
    """A sequence classifier with its tokenizer and text format.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: of the backbone.
        layout: how training assembled the texts.
        max_length: length limit of ``logits``, tokens.
        max_batch_tokens: bound on a batch, tokens with padding; halved whenever memory runs out.
        autocast: dtype to compute in, or None for that of the weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        layout: TextFormat,
        *,
        max_length: int,
        max_batch_tokens: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.tokenizer, self.layout = model, tokenizer, layout
        self.max_length, self.max_batch_tokens, self.autocast = max_length, max_batch_tokens, autocast
        self.device = next(model.parameters()).device

    def logits(self, rows: Rows) -> np.ndarray:
        """Raw logits for A, B and tie, float32 ``[N, 3]``, in the order of ``rows``."""
        return self.view_logits(rows, [View(self.max_length)])[0]

    def view_logits(self, rows: Rows, views: list[View]) -> np.ndarray:
        """Raw logits of every view, float32 ``[V, N, 3]``, those of swapped views put back to A, B, tie.

        Views that give a row the same tokens are computed once.
        """
        check_lengths(self.model, [view.max_length for view in views], "length limit")
        sequences, number = assemble(tokenize_rows(rows, self.tokenizer), self.layout, views)
        return in_class_order(self.score(sequences)[number], views)

    def score(self, sequences: Sequences) -> np.ndarray:
        """Raw logits of token sequences, float32 ``[S, 3]``, in their order."""
        out = np.full((len(sequences), len(SWAPPED)), np.nan, dtype=np.float32)
        self.score_batches(sequences, token_budget_batches(sequences.ids.lengths, self.max_batch_tokens), out)
        return out

    def score_batches(
        self,
        sequences: Sequences,
        batches: list[np.ndarray],
        out: np.ndarray,
        begin: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Put the logits of some batches into their rows of ``out`` (float32 ``[S, 3]``), one batch after the other.

        Args:
            sequences: what to score.
            batches: sequence numbers of each batch.
            out: receives the logits.
            begin: called with each batch before it is scored.

        Raises:
            InputError: the model gives NaN or infinite logits.
            Interrupted: a signal asked to stop; the batches before are whole.
        """
        lengths = sequences.ids.lengths
        self.model.eval()
        total = sum(map(len, batches))
        lasting = isinstance(out, np.memmap)
        with checkpointing(), Progress("scoring", total, "sequences") as progress, torch.inference_mode():
            for batch in batches:
                stop_if_requested()
                if begin is not None:
                    begin(batch)
                self._score_into(out, sequences, batch)
                if not np.isfinite(out[batch]).all():
                    raise InputError(
                        "the model gives NaN or infinite logits -> its weights are damaged, or fp16 overflows: use bf16"
                    )
                heartbeat.keep(int(lasting))
                progress.update(len(batch), int(lengths[batch].sum()))

    def _score_into(self, out: np.ndarray, sequences: Sequences, batch: np.ndarray) -> None:
        width = int(sequences.ids.lengths[batch].max())
        rows = max(1, self.max_batch_tokens // width)  # fewer than the batch has only after memory ran out once
        for start in range(0, len(batch), rows):
            piece = batch[start : start + rows]
            try:
                out[piece] = self._forward(sequences, piece)
                continue
            except torch.OutOfMemoryError as error:
                if len(piece) == 1:
                    raise SettingsError(
                        f"out of memory at a single sequence of {width:,} tokens -> lower the length limit, or take a "
                        "smaller model"
                    ) from error
            # Not within the except block: the error holds on to all that the batch had in memory.
            torch.cuda.empty_cache()
            self.max_batch_tokens = len(piece) * width // 2
            print(f"out of memory: going on with batches of {self.max_batch_tokens:,} tokens")
            self._score_into(out, sequences, batch[start:])
            return

    def _forward(self, sequences: Sequences, rows: np.ndarray) -> np.ndarray:
        inputs = pad_batch(sequences, rows, self.tokenizer.pad_token_id)
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return np.asarray(self.model(**inputs).logits.float().cpu().numpy())


def in_class_order(logits: np.ndarray, views: list[View]) -> np.ndarray:
    """``[V, N, 3]`` as scored, with the logits of swapped views put back to the order A, B, tie."""
    out = logits.copy()
    for v, view in enumerate(views):
        if view.swap:
            out[v] = logits[v][:, SWAPPED]
    return out


def load_judge(
    path: str | Path,
    *,
    max_length: int = 512,
    batch_rows: int = 32,
    dtype: str = "float32",
    quant: Quantization = "none",
    device: str | None = None,
    base: str = "",
    probe: bool = True,
) -> ClassifierJudge:
    """Load a trained student or teacher from its directory.

    Args:
        path: directory that ``student-train`` or step 3 wrote; a merged or quantized model, or an adapter whose base is
            at hand.
        max_length: length limit of ``Judge.logits``, tokens.
        batch_rows: a batch holds at most this many times ``max_length`` tokens, padding included; on a CPU no more
            than 4,096 (and one sequence always).
        dtype: ``float32``, ``bfloat16`` or ``float16``; what matrix products are computed in.
        quant: load the weights of the backbone in 8 bits (``int8``) or 4 (``nf4``); the head stays as it is. With
            ``int8`` encoders on a CPU that has VNNI compute in 8 bits too.
        device: ``cuda``, ``cpu``, ``auto`` (spread over all GPUs); by default the GPU if there is one.
        base: base model of an adapter; by default the one that it was trained on.
        probe: of a quantized model, compare a few answers with those that it gave when it was made.

    Raises:
        InputError: there is no judge at ``path``, its files are damaged, its head is missing, or a quantized model
            answers otherwise than when it was made.
        SettingsError: what was asked for cannot be done on this machine.
    """
    directory = Path(path)
    if not any((directory / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise InputError(
            f"{path}: no model there (no config.json) -> train one first (--mode student-train, or step 3)"
        )
    layout = TextFormat.load(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "float16" and device == "cpu":
        raise SettingsError("float16 needs a CUDA GPU -> use bfloat16 (--student-bf16)")
    tokenizer = load_tokenizer(str(directory))
    compute = getattr(torch, dtype)
    teacher = any((directory / name).is_file() for name in (ADAPTER_CONFIG, LABEL_TOKENS_FILE))
    quantized = is_quantized(directory)
    # Small students keep their weights in full; of a large base, 16 bits is what was trained on, or merged into.
    whole = not (teacher or quantized or _config(directory).get("dtype") == dtype)
    options: dict[str, Any] = {"dtype": torch.float32 if whole else compute}
    int8_layers = (
        quant == "int8" and device == "cpu" and not quantized and can_compute_int8(_config(directory).get("model_type"))
    )
    if int8_layers:
        options["dtype"] = torch.float32
    elif quant != "none":
        options["quantization_config"] = _int8_config() if quant == "int8" else nf4_config(compute)
    if (quant != "none" and not int8_layers) or quantized or device == "auto":
        options["device_map"] = "auto" if device == "auto" else {"": device}
    model = load_saved_model(directory, tokenizer, base=base, **options)
    without_padding(model)
    tokens = token_table_size(model)
    if max((token for piece in (*layout.pieces, layout.cut_mark) for token in piece), default=0) >= tokens:
        raise InputError(f"{path}: its text_format.json names tokens that the model does not know -> train it again")
    if "device_map" not in options:
        model = model.to(device)
    model.eval()
    autocast = None if dtype == "float32" or quantized or int8_layers else compute
    if autocast is not None:
        _round_matrices(model, autocast)
    judge = ClassifierJudge(
        model,
        tokenizer,
        layout,
        max_length=max_length,
        max_batch_tokens=batch_tokens(batch_rows, max_length, device),
        autocast=autocast,
    )
    if int8_layers:
        views = [View(min(max_length, longest_input(model) or max_length))]
        to_int8(model, lambda: judge.view_logits(_typical_rows(), views))
    if quantized and probe:
        check_probe(judge, directory)
    return judge


def batch_tokens(rows: int, max_length: int, device: str) -> int:
    """How many tokens a batch may hold that is given as ``rows`` of ``max_length`` tokens."""
    return min(rows * max_length, CPU_BATCH_TOKENS) if device == "cpu" else rows * max_length


def _typical_rows() -> Rows:
    """Texts of many kinds, always the same, by which 8-bit layers find the range of their inputs."""
    drawn = generate(split_rows={"train": INT8_ROWS})
    texts: dict[str, list[tuple[str | None, ...]]] = {"prompt": [row.prompt for row in drawn]}
    texts |= {name: [row.answers[k] for row in drawn] for k, name in enumerate(TEXT_COLUMNS[1:])}
    return pa.table({name: pa.array(map(list, turns), SCHEMA.field(name).type) for name, turns in texts.items()})


def _round_matrices(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of the body's linear layers once, as autocast would for every batch anew."""
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and not is_head(name):
            module.to(dtype)


def _config(directory: Path) -> dict[str, Any]:
    """A model's configuration; empty where it cannot be read."""
    try:
        return dict(json.loads((directory / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):  # what is wrong with it, loading the model will say
        return {}


def _int8_config() -> Any:
    try:
        import bitsandbytes  # noqa: F401  (transformers' own message about a missing package is a page long)
    except ImportError as error:
        raise SettingsError("--student-infer-8bit needs bitsandbytes -> pip install 'arena-distill[int8]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(HEAD_MODULES))
