"""What the head of a classifier reads: one hidden state a row, written down while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from arena_distill.runtime.errors import InputError

LARGEST = float(np.finfo(np.float16).max)  # the states are kept in 16 bits


class LastTokenRecorder:
    """Puts the head's input at each row's last token into rows of an array."""

    def __init__(self, out: np.ndarray) -> None:
        self.out = out
        self._rows: np.ndarray = np.zeros(0, np.int64)
        self._last: torch.Tensor | None = None

    def begin(self, rows: np.ndarray) -> None:
        """Say which rows of ``out`` the next forward passes are for; a batch halved for memory comes in order."""
        self._rows = rows

    def on_model(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note where each row ends."""
        self._last = kwargs["attention_mask"].sum(dim=1) - 1

    def on_head(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep the state there; encoders give the head one state a row already."""
        states = args[0]
        if states.dim() == 3 and self._last is not None:
            states = states[torch.arange(len(states), device=states.device), self._last.to(states.device)]
        values = states.float().cpu().numpy()
        if not (np.abs(values) <= LARGEST).all():
            raise InputError("its hidden states do not fit 16 bits -> set INFER_SAVE_LASTTOK=0")
        self.out[self._rows[: len(values)]] = values
        self._rows = self._rows[len(values) :]


@contextmanager
def record_last_token(model: Any, out: np.ndarray) -> Iterator[LastTokenRecorder]:
    """Record while the context lasts.

    Args:
        model: a sequence classifier, adapter or not.
        out: float32 ``[S, H]``; filled at the rows that ``recorder.begin`` names before each batch.
    """
    recorder = LastTokenRecorder(out)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.score if hasattr(inner, "score") else inner.classifier
    handles = [
        model.register_forward_pre_hook(recorder.on_model, with_kwargs=True),
        head.register_forward_pre_hook(recorder.on_head),
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
