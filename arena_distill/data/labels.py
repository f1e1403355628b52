"""Votes in any of the label styles people write, as class probabilities ``[N, 3]`` in the order A, B, tie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.records import PROBABILITY_COLUMNS
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

WINNER = "winner"
PROB_COLUMNS = tuple(f"{name}_prob" for name in PROBABILITY_COLUMNS)
LABEL_COLUMNS = (WINNER, *PROBABILITY_COLUMNS, *PROB_COLUMNS)

WINNER_VALUES = {
    "model_a": 0,
    "model_b": 1,
    "tie": 2,
    "tie (bothbad)": 2,
    "tie(bothbad)": 2,
    "tie (both bad)": 2,
    "both_bad": 2,
    "bothbad": 2,
}

RENORMALISED = "probabilities that summed to 1 only roughly, renormalised"
SUM_TOLERANCE = 1e-2  # a wider miss is a mistake, not rounding


def label_columns(columns: Mapping[str, str], file: Path) -> list[str]:
    """The label columns among a file's ``columns`` (normalised names); ``[]`` for an unlabelled file.

    Raises:
        DataError: only some of the three columns of a style are there.
    """
    found = [WINNER] if WINNER in columns else []
    for style in (PROBABILITY_COLUMNS, PROB_COLUMNS):
        present = [name for name in style if name in columns]
        if present and len(present) < len(style):
            missing = ", ".join(sorted(set(style) - set(present)))
            raise DataError(f"has {', '.join(present)} but not {missing}", file=file, hint="add the missing columns")
        found += present
    return found


class VoteReader:
    """Reads the label columns of one file, batch after batch.

    Where several styles are present, probabilities give the target; ``winner`` and one-hot columns must agree.
    """

    def __init__(self, file: Path, columns: list[str], summary: LoadSummary) -> None:
        self.file, self.columns, self.summary = file, columns, summary

    def votes(self, batch: Mapping[str, pa.Array], rows_before: int) -> np.ndarray:
        """Class probabilities, float64 ``[N, 3]``; a row without any vote is all NaN.

        Raises:
            DataError: a vote that cannot be read; names row and column.
        """
        found: np.ndarray | None = None
        if WINNER in self.columns:
            found = self._from_winner(batch[WINNER], rows_before)
        for style in (PROBABILITY_COLUMNS, PROB_COLUMNS):
            if style[0] in self.columns:
                votes = self._from_numbers(batch, style, rows_before)
                if found is not None:
                    self._refuse_contradiction(found, votes, style, rows_before)
                    votes = np.where(np.isnan(votes), found, votes)
                found = votes
        assert found is not None, "VoteReader needs at least one label column"
        return found

    def _from_winner(self, column: pa.Array, rows_before: int) -> np.ndarray:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        winners = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
        names = list(WINNER_VALUES)
        position = pc.index_in(winners, pa.array(names))
        empty = pc.equal(winners, "").to_numpy(zero_copy_only=False)
        known = position.is_valid().to_numpy(zero_copy_only=False)
        if (bad := ~known & ~empty).any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"unknown winner {column[row].as_py()!r}", file=self.file, row=rows_before + row + 1, column=WINNER,
                hint="use model_a, model_b, tie or tie (bothbad)",
            )  # fmt: skip
        votes = np.full((len(winners), 3), np.nan)
        labels = np.array([WINNER_VALUES[name] for name in names])[position.fill_null(0).to_numpy()]
        votes[known] = np.eye(3)[labels[known]]
        return votes

    def _from_numbers(self, batch: Mapping[str, pa.Array], style: tuple[str, ...], rows_before: int) -> np.ndarray:
        votes = np.column_stack([self._numbers(batch[name], name, rows_before) for name in style])
        given = np.column_stack([~_is_empty(batch[name]) for name in style])

        def refuse(bad: np.ndarray, problem: str, hint: str, column: str | None = None) -> None:
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                values = ", ".join(f"{value:g}" for value in votes[row])
                raise DataError(
                    f"{problem} ({values})", file=self.file, row=rows_before + row + 1,
                    column=column or style[0].removesuffix("model_a").rstrip("_") + "…", hint=hint,
                )  # fmt: skip

        any_given = given.any(axis=1)
        for index, name in enumerate(style):
            refuse(any_given & ~given[:, index], "has no value where the other columns do", "fill it in", name)
            refuse(given[:, index] & ~np.isfinite(votes[:, index]), "is not a finite number", "write a number", name)
            refuse(given[:, index] & (votes[:, index] < 0), "is negative", "probabilities lie between 0 and 1", name)
        sums = np.where(any_given, votes.sum(axis=1), 1.0)
        off = np.abs(sums - 1) > SUM_TOLERANCE
        hint = "exactly one of the three must be 1" if set(np.unique(votes[any_given])) <= {0.0, 1.0} else "give shares"
        refuse(off, f"the three do not sum to 1 but to {sums[off][0]:g}" if off.any() else "", hint)
        self.summary.repaired(RENORMALISED, int((np.abs(sums - 1) > 1e-6).sum()))
        return votes / sums[:, None]

    def _numbers(self, column: pa.Array, name: str, rows_before: int) -> np.ndarray:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_null(column.type) or pa.types.is_boolean(column.type):
            column = column.cast(pa.float64() if pa.types.is_null(column.type) else pa.int8())
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            try:
                return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"holds {column.type}, not numbers", file=self.file, column=name, hint="write 0, 1 or a share"
                ) from error
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
        texts = pc.replace_with_mask(texts, pc.equal(texts, "true"), "1")
        texts = pc.replace_with_mask(texts, pc.equal(texts, "false"), "0")
        texts = pc.if_else(pc.equal(texts, ""), None, texts)
        try:
            return np.asarray(texts.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        except pa.ArrowInvalid:
            for row, text in enumerate(texts.to_pylist(), start=rows_before + 1):
                try:
                    float(text or 0)
                except ValueError as error:
                    raise DataError(
                        f"{text!r} is not a number", file=self.file, row=row, column=name, hint="write 0, 1 or a share"
                    ) from error
            return np.array([np.nan if text is None else float(text) for text in texts.to_pylist()])

    def _refuse_contradiction(
        self, first: np.ndarray, second: np.ndarray, style: tuple[str, ...], rows_before: int
    ) -> None:
        if style == PROB_COLUMNS:
            return  # shares of several votes need not side with one person's winner
        both = ~np.isnan(first[:, 0]) & ~np.isnan(second[:, 0])
        bad = both & (first.argmax(axis=1) != second.argmax(axis=1))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"columns {WINNER!r} and {style[0]!r} … name different winners", file=self.file,
                row=rows_before + row + 1, column=WINNER, hint="correct the row, or remove one of the two styles",
            )  # fmt: skip


def _is_empty(column: pa.Array) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))


def hard_labels(votes: np.ndarray) -> np.ndarray:
    """Class index of each row of ``votes`` ``[N, 3]``, int8; an even split between A and B counts as a tie."""
    labels = votes.argmax(axis=1).astype(np.int8)
    labels[(votes[:, 0] == votes[:, 1]) & (votes[:, 0] >= votes[:, 2])] = 2
    return labels
