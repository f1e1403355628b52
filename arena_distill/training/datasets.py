"""Rows as what the Trainer trains on."""

from __future__ import annotations

from typing import Any

import numpy as np

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SWAPPED, Rows, targets
from arena_distill.training.trainer import PreferenceDataset


def make_dataset(rows: Rows, tokenizer: Any, layout: TextFormat, max_length: int, swap_too: bool) -> PreferenceDataset:
    """Sequences and targets of ``rows``; with ``swap_too`` each row stands in both orders, its vote turned round."""
    views = [View(max_length), View(max_length, swap=True)] if swap_too else [View(max_length)]
    sequences, number = assemble(tokenize_rows(rows, tokenizer), layout, views)
    votes = targets(rows)
    both = np.concatenate([votes[:, SWAPPED] if view.swap else votes for view in views])
    return PreferenceDataset(sequences.take(number.ravel()), both)
