"""Calibration examples for GPTQ: pairs of all lengths, in both orders, in the very token format of the student."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from arena_distill.data.prompts import Sequences, TextFormat, Tokenizer, View, assemble, texts_of, tokenize_rows
from arena_distill.data.records import Rows

STRATA = 8  # of equally many rows, from the shortest pairs to the longest


@dataclass(frozen=True)
class CalibrationTexts:
    """N examples, and where they come from."""

    sequences: Sequences
    rows: np.ndarray  # int64 [N], row of the file
    swapped: np.ndarray  # bool [N]
    strata: np.ndarray  # int64 [N], 0 the shortest pairs

    def __len__(self) -> int:
        return len(self.rows)

    def summary(self) -> str:
        """One line for the log."""
        lengths = self.sequences.ids.lengths
        return (
            f"{len(self):,} calibration texts of {len(np.unique(self.rows)):,} pairs, {int(self.swapped.sum()):,} in "
            f"swapped order, {lengths.min()} to {lengths.max()} tokens"
        )


def choose_calibration(
    rows: Rows, tokenizer: Tokenizer, layout: TextFormat, *, max_length: int, count: int, seed: int
) -> CalibrationTexts:
    """Draw ``count`` examples, equally many from each stratum of length, one half of them in swapped order.

    A pair stands in one order only while there are pairs enough: more texts teach more than the same ones again.

    Args:
        rows: canonical rows.
        tokenizer: of the student.
        layout: its text format.
        max_length: its length limit, tokens.
        count: examples; fewer if the file has less than half as many pairs.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    by_length = np.argsort(text_lengths(rows), kind="stable")
    picked: list[np.ndarray] = []  # of each stratum, int64 [n, 3]: row, swapped, stratum
    parts = np.array_split(by_length, min(STRATA, len(by_length)))
    shares = _shares(count, [2 * len(part) for part in parts])
    for stratum, (part, share) in enumerate(zip(parts, shares, strict=True)):
        mixed = rng.permutation(part)
        order = (np.arange(len(mixed)) + stratum) % 2
        both = np.concatenate([np.stack([mixed, order], 1), np.stack([mixed, 1 - order], 1)])[:share]
        picked.append(np.column_stack([both, np.full(len(both), stratum)]))
    chosen = np.concatenate(picked)
    tokens = tokenize_rows(rows.take(chosen[:, 0]), tokenizer)
    sequences, number = assemble(tokens, layout, [View(max_length), View(max_length, swap=True)])
    wanted = sequences.take(number[chosen[:, 1], np.arange(len(chosen))])
    return CalibrationTexts(wanted, chosen[:, 0], chosen[:, 1].astype(bool), chosen[:, 2])


def text_lengths(rows: Rows) -> np.ndarray:
    """Characters of prompt and answers together, int64 ``[N]``: what is drawn by need not be tokenized first."""
    return np.asarray(sum(pc.utf8_length(column).to_numpy().astype(np.int64) for column in texts_of(rows)))


def _shares(count: int, capacities: list[int]) -> list[int]:
    """``count`` divided into parts as equal as their capacities allow."""
    shares = [0] * len(capacities)
    for place in sorted(range(len(capacities)), key=lambda place: capacities[place]):
        waiting = sum(share == 0 for share in shares)
        shares[place] = min(capacities[place], -(-(count - sum(shares)) // waiting))
    return shares
