"""What the head of a classifier reads: one hidden state a row, written down while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class LastTokenRecorder:
    """Puts the head's input at each row's last token into the rows ``rows`` of an array."""

    def __init__(self, out: np.ndarray) -> None:
        self.out = out
        self.rows: np.ndarray = np.zeros(0, np.int64)
        self._last: torch.Tensor | None = None

    def on_model(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note where each row ends."""
        mask = kwargs["attention_mask"]
        self._last = mask.sum(dim=1) - 1

    def on_head(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep the state there; encoders give the head one state a row already."""
        states = args[0]
        if states.dim() == 3 and self._last is not None:
            states = states[torch.arange(len(states), device=states.device), self._last.to(states.device)]
        self.out[self.rows[: len(states)]] = states.float().cpu().numpy()
        self.rows = self.rows[len(states) :]  # a batch halved for memory comes in parts, in order


@contextmanager
def record_last_token(model: Any, out: np.ndarray) -> Iterator[LastTokenRecorder]:
    """Record while the context lasts.

    Args:
        model: a sequence classifier, adapter or not.
        out: float32 ``[S, H]``; filled at the rows that ``recorder.rows`` names before each batch.
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
