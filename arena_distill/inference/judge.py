"""The one door to every model: a judge turns canonical rows into three raw logits each, in the order of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from arena_distill.data.batching import token_budget_batches
from arena_distill.data.prompts import Sequences, TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SWAPPED, Rows
from arena_distill.models.classifier import (
    HEAD_MODULES,
    check_lengths,
    load_classifier,
    load_tokenizer,
    pad_batch,
    token_table_size,
)
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.progress import Progress


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
        distinct = self.score(sequences)
        out = distinct[number]
        for v, view in enumerate(views):
            if view.swap:
                out[v] = out[v][:, SWAPPED]
        return out

    def score(self, sequences: Sequences) -> np.ndarray:
        """Raw logits of token sequences, float32 ``[S, 3]``, in their order."""
        lengths = sequences.ids.lengths
        out = np.full((len(sequences), len(SWAPPED)), np.nan, dtype=np.float32)
        self.model.eval()
        with Progress("scoring", len(sequences), "sequences") as progress, torch.inference_mode():
            for batch in token_budget_batches(lengths, self.max_batch_tokens):
                self._score_into(out, sequences, batch)
                progress.update(len(batch), int(lengths[batch].sum()))
        if not np.isfinite(out).all():
            raise InputError(
                "the model gives NaN or infinite logits -> its weights are damaged, or fp16 overflows (use bf16)"
            )
        return out

    def _score_into(self, out: np.ndarray, sequences: Sequences, batch: np.ndarray) -> None:
        try:
            inputs = pad_batch(sequences, batch, self.tokenizer.pad_token_id)
            inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                out[batch] = self.model(**inputs).logits.float().cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            self.max_batch_tokens //= 2
            print(f"out of memory: going on with batches of {self.max_batch_tokens:,} tokens")
            half = len(batch) // 2
            self._score_into(out, sequences, batch[:half])
            self._score_into(out, sequences, batch[half:])


def load_judge(
    path: str | Path,
    *,
    max_length: int = 512,
    batch_rows: int = 32,
    dtype: str = "float32",
    int8: bool = False,
    device: str | None = None,
) -> ClassifierJudge:
    """Load a trained student from its directory.

    Args:
        path: directory that ``student-train`` wrote.
        max_length: length limit of ``Judge.logits``, tokens.
        batch_rows: a batch holds at most this many times ``max_length`` tokens, padding included.
        dtype: ``float32``, ``bfloat16`` or ``float16``; what matrix products are computed in.
        int8: load the weights of the backbone as int8 (bitsandbytes); the head stays as it is.
        device: ``cuda``, ``cpu`` …; by default the GPU if there is one.

    Raises:
        InputError: there is no student at ``path``, its files are damaged, or its head is missing.
        SettingsError: what was asked for cannot be done on this machine.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise InputError(f"{path}: no student there (no config.json) -> train one first (--mode student-train)")
    layout = TextFormat.load(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "float16" and device == "cpu":
        raise SettingsError("float16 needs a CUDA GPU -> use bfloat16 (--student-bf16)")
    tokenizer = load_tokenizer(str(directory))
    options: dict[str, Any] = {"dtype": torch.float32}
    if int8:
        options |= {"quantization_config": _int8_config(), "device_map": {"": device}}
    model, fresh = load_classifier(str(directory), tokenizer, **options)
    if fresh:
        raise InputError(
            f"{path}: the saved model lacks some of its weights -> a random head would be used; train it again"
        )
    known = token_table_size(model)
    if max((token for piece in (*layout.pieces, layout.cut_mark) for token in piece), default=0) >= known:
        raise InputError(f"{path}: its text_format.json names tokens that the model does not know -> train it again")
    if not int8:
        model = model.to(device)
    model.eval()
    return ClassifierJudge(
        model,
        tokenizer,
        layout,
        max_length=max_length,
        max_batch_tokens=batch_rows * max_length,
        autocast=None if dtype == "float32" else getattr(torch, dtype),
    )


def _int8_config() -> Any:
    try:
        import bitsandbytes  # noqa: F401  (transformers' own message about a missing package is a page long)
    except ImportError as error:
        raise SettingsError("--student-infer-8bit needs bitsandbytes -> pip install 'arena-distill[int8]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(HEAD_MODULES))
