"""Batches by token budget from length-sorted rows, and results back in input order."""

from __future__ import annotations

import numpy as np

from arena_distill.runtime.errors import SettingsError


def token_budget_batches(
    lengths: np.ndarray, max_tokens: int, *, max_rows: int = 0, multiple_of: int = 1
) -> list[np.ndarray]:
    """Cut rows, longest first, into batches that hold at most ``max_tokens`` tokens with padding.

    Sorted rows need hardly any padding, and a batch of short rows may hold many. The longest come first so that a
    budget too large for the memory fails at once and not after an hour. A row longer than the budget gets a batch
    of its own.

    Args:
        lengths: tokens of each row, int ``[N]``.
        max_tokens: bound on rows × padded length of a batch, at least 1.
        max_rows: bound on the rows of a batch; 0 for none.
        multiple_of: lengths are padded up to a multiple of this.

    Returns:
        Row numbers of each batch; every row stands in exactly one.
    """
    if max_tokens < 1 or max_rows < 0 or multiple_of < 1:
        raise SettingsError("a batch needs max_tokens >= 1, max_rows >= 0 and multiple_of >= 1")
    padded = padded_length(np.asarray(lengths, dtype=np.int64), multiple_of)
    order = np.argsort(-padded, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(padded[order[start]]))
        rows = max(1, max_tokens // longest)
        if max_rows:
            rows = min(rows, max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def padded_length(lengths: np.ndarray, multiple_of: int) -> np.ndarray:
    """``lengths`` rounded up to a multiple."""
    return -(-lengths // multiple_of) * multiple_of
