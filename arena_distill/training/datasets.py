"""Rows as what the Trainer trains on."""

from __future__ import annotations

from typing import Any

import numpy as np

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SWAPPED, Rows, targets
from arena_distill.training.soft_labels import SoftLabels
from arena_distill.training.trainer import PreferenceDataset


def make_dataset(
    rows: Rows,
    tokenizer: Any,
    layout: TextFormat,
    max_length: int,
    swap_too: bool,
    teachers: SoftLabels | None = None,
) -> PreferenceDataset:
    """Sequences and targets of ``rows``, and what the teachers say of them.

    With ``swap_too`` each row stands in both orders, its vote and the teachers' logits turned round.
    """
    views = [View(max_length), View(max_length, swap=True)] if swap_too else [View(max_length)]
    sequences, number = assemble(tokenize_rows(rows, tokenizer), layout, views)
    votes = targets(rows)
    return PreferenceDataset(
        sequences.take(number.ravel()),
        _in_orders(votes, views),
        None if teachers is None else _in_orders(teachers.of(rows), views),
    )


def _in_orders(by_class: np.ndarray, views: list[View]) -> np.ndarray:
    """``[N, …, 3]`` once for each view, one after the other, A and B exchanged for swapped views."""
    return np.concatenate([by_class[..., SWAPPED] if view.swap else by_class for view in views])
