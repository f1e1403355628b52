"""Votes in any of the label styles people write, as class probabilities ``[N, 3]`` in the order A, B, tie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.raw import as_strings, is_text
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


def label_columns(columns: Collection[str], file: Path) -> list[str]:
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
        column = pc.fill_null(as_strings(column, self.file, WINNER, rows_before), "")
        winners = pc.utf8_lower(pc.utf8_trim_whitespace(column))
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
        columns = [self._numbers(batch[name], name, rows_before) for name in style]
        votes = np.column_stack([column.to_numpy(zero_copy_only=False) for column in columns])
        given = np.column_stack([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])

        def refuse(bad: np.ndarray, column: str, problem: str, hint: str) -> None:
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                values = ", ".join(f"{value:g}" for value in votes[row])
                problem = problem.format(sum=votes[row].sum())
                raise DataError(
                    f"{problem} ({values})", file=self.file, row=rows_before + row + 1, column=column, hint=hint
                )

        labelled = given.any(axis=1)
        for index, name in enumerate(style):
            value, known = votes[:, index], given[:, index]
            refuse(labelled & ~known, name, "has no value where the other two columns do", "fill it in, or empty all")
            refuse(known & ~np.isfinite(value), name, "is not a finite number", "write 0, 1 or a share")
            refuse(known & (value < 0), name, "is negative", "probabilities lie between 0 and 1")
        sums = np.where(labelled, votes.sum(axis=1), 1.0)
        whole = labelled & np.isin(votes, (0.0, 1.0)).all(axis=1)
        off = np.abs(sums - 1) > SUM_TOLERANCE
        all_three = f"{style[0]} … {style[-1]}"
        refuse(off & whole, all_three, "name {sum:g} winners", "exactly one of the three must be 1")
        percent = off & (np.abs(sums - 100) <= 100 * SUM_TOLERANCE)
        refuse(percent, all_three, "sum to {sum:g}: these are percentages", "divide them by 100")
        refuse(off, all_three, "do not sum to 1 but to {sum:g}", "divide them by their sum")
        self.summary.repaired(RENORMALISED, int((np.abs(sums - 1) > 1e-6).sum()))
        return np.asarray(votes / sums[:, None])

    def _numbers(self, column: pa.Array, name: str, rows_before: int) -> pa.Array:
        """The column as float64; null where the row has no value."""
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if not is_text(column.type):
            try:
                return column.cast(pa.float64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                problem = f"holds {column.type}, not numbers"
                raise DataError(problem, file=self.file, column=name, hint="write 0, 1 or a share") from error
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(as_strings(column, self.file, name, rows_before)))
        for word, digit in (("true", "1"), ("false", "0"), ("", None)):
            texts = pc.if_else(pc.equal(texts, word), digit, texts)
        try:
            return texts.cast(pa.float64())
        except pa.ArrowInvalid:
            return pa.array(
                [self._number(text, name, row) for row, text in enumerate(texts.to_pylist(), start=rows_before + 1)],
                pa.float64(),
            )

    def _number(self, text: str | None, name: str, row: int) -> float | None:
        try:
            return None if text is None else float(text)
        except ValueError as error:
            raise DataError(
                f"{text!r} is not a number", file=self.file, row=row, column=name, hint="write 0, 1 or a share"
            ) from error

    def _refuse_contradiction(
        self, first: np.ndarray, second: np.ndarray, style: tuple[str, ...], rows_before: int
    ) -> None:
        if style == PROB_COLUMNS:
            return  # shares of several votes need not side with one person's winner
        both = ~np.isnan(first[:, 0]) & ~np.isnan(second[:, 0])
        bad = both & (hard_labels(first) != hard_labels(second))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"columns {WINNER!r} and {style[0]!r} … name different winners", file=self.file,
                row=rows_before + row + 1, column=WINNER, hint="correct the row, or remove one of the two styles",
            )  # fmt: skip


def hard_labels(votes: np.ndarray) -> np.ndarray:
    """Class index of each row of ``votes`` ``[N, 3]``, int8; an even split between A and B counts as a tie."""
    labels = votes.argmax(axis=1).astype(np.int8)
    labels[(votes[:, 0] == votes[:, 1]) & (votes[:, 0] >= votes[:, 2])] = 2
    return labels
