"""Submission files: ``id,winner_model_a,winner_model_b,winner_tie``, checked on the way out and on the way in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.data.records import PROBABILITY_COLUMNS
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import DataError

HEADER = ("id", *PROBABILITY_COLUMNS)

RANGE_TOLERANCE = 1e-9
"""How far outside [0, 1] a probability may lie by rounding; it is then clipped."""

WRITE_SUM_TOLERANCE = 1e-6
"""How far from 1 a row to be written may sum: float32 rounding. Beyond that something upstream is wrong."""

READ_SUM_TOLERANCE = 1e-3
"""How far from 1 a row that was read may sum: other people's files round to as few as three or four decimals."""


def write_submission(path: str | PathLike[str], ids: Sequence[str], probabilities: ArrayLike) -> None:
    """Write a submission, complete or not at all.

    The rows are checked, written under a temporary name beside ``path``, synced to disk and renamed, so that a
    failure leaves an older file as it was. Missing parent directories are made.

    Args:
        path: the CSV file.
        ids: one for each row, written verbatim and in this order.
        probabilities: ``[N, 3]`` in the order A, B, tie; each row within 1e-6 of summing to 1, and then divided by
            its sum.

    Raises:
        DataError: an id is empty, repeated or not encodable; counts or shape do not agree; a probability is not
            finite or outside [0, 1]; a row does not sum to 1; the file cannot be written.
    """
    path = Path(path)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(PROBABILITY_COLUMNS):
        raise DataError(f"probabilities must have shape [N, 3], not {list(p.shape)}", file=path, hint="one row an id")
    if len(ids) != len(p):
        raise DataError(f"{len(ids)} ids for {len(p)} rows of probabilities", file=path, hint="one row an id")
    _check_ids(path, ids)
    p = _checked_probabilities(path, p, WRITE_SUM_TOLERANCE)
    try:
        write_atomically(path, _as_csv(ids, p / p.sum(axis=1, keepdims=True)))
    except OSError as error:
        hint = "check the directory, its permissions and the free disk space"
        raise DataError(f"cannot be written: {error.strerror or error}", file=path, hint=hint) from error


def read_submission(
    path: str | PathLike[str], expected_ids: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Read a submission, refusing what Kaggle or an ensemble would trip over.

    Args:
        path: the CSV file (a byte-order mark and CRLF are fine).
        expected_ids: the ids that the file must hold, no more and no fewer; the rows come back in this order.
            None: any ids, in the file's order.

    Returns:
        The ids verbatim, and float64 ``[N, 3]`` in the order A, B, tie. Rows that sum to 1 only within rounding
        (at most 1e-3 off) are divided by their sum.

    Raises:
        DataError: wrong columns, no rows, a ragged or unreadable row, an id that is empty, repeated, missing or
            not expected, or a probability that is not a number, not finite, outside [0, 1] or in a row that does
            not sum to 1. Names the row (from 1, header not counted) and column.
    """
    path = Path(path)
    ids: list[str] = []
    values: list[list[float]] = []
    for row, record in enumerate(_records(path), start=1):
        if len(record) != len(HEADER):
            raise DataError(f"has {len(record)} fields instead of {len(HEADER)}", file=path, row=row, hint=_hint())
        ids.append(record[0])
        values.append([_number(path, row, name, text) for name, text in zip(HEADER[1:], record[1:], strict=True)])
    if not ids:
        raise DataError("has a header but no rows", file=path, hint="write it again from the test file")
    _check_ids(path, ids)
    p = _checked_probabilities(path, np.array(values), READ_SUM_TOLERANCE)
    sums = p.sum(axis=1, keepdims=True)
    # Rows that already sum to 1 stay bit for bit as written.
    p = np.where(np.abs(sums - 1) > RANGE_TOLERANCE, p / sums, p)
    if expected_ids is None:
        return ids, p
    return list(expected_ids), p[_order(path, ids, expected_ids)]


def _records(path: Path) -> Iterator[list[str]]:
    """The data records (blank lines left out) after a checked header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = (record for record in csv.reader(file, strict=True) if record)
            header = next(records, None)
            if header is None:
                raise DataError("is empty", file=path, hint=_hint())
            if tuple(header) != HEADER:
                found = ",".join(header)
                raise DataError(f"has columns {found[:200]!r}", file=path, hint=_hint())
            yield from records
    except OSError as error:
        hint = "give the path of a submission CSV"
        raise DataError(f"cannot be read: {error.strerror or error}", file=path, hint=hint) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"is not a UTF-8 CSV file: {error}", file=path, hint=_hint()) from error


def _hint() -> str:
    return f"a submission has exactly the columns {','.join(HEADER)}"


def _number(path: Path, row: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        hint = "write a probability between 0 and 1"
        raise DataError(f"{text[:40]!r} is not a number", file=path, row=row, column=column, hint=hint) from None


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    if not len(ids):
        raise DataError("there are no rows", file=path, hint="the test file has no usable rows?")
    first_row: dict[str, int] = {}
    for row, name in enumerate(ids, start=1):
        if not isinstance(name, str) or not name:
            hint = "every row needs an id (text)"
            raise DataError(f"the id is {name!r}", file=path, row=row, column="id", hint=hint)
        if name in first_row:
            problem = f"the id {name[:80]!r} stands in row {first_row[name]} already"
            raise DataError(problem, file=path, row=row, column="id", hint="ids must be unique")
        try:
            name.encode()
        except UnicodeEncodeError:
            hint = "remove the lone surrogate from the id"
            problem = f"the id {name[:80]!a} is not valid Unicode"
            raise DataError(problem, file=path, row=row, column="id", hint=hint) from None
        first_row[name] = row


def _checked_probabilities(path: Path, p: np.ndarray, sum_tolerance: float) -> np.ndarray:
    """``p`` ``[N, 3]`` clipped to [0, 1]; refuses what is outside by more than rounding."""
    for bad, problem in (
        (~np.isfinite(p), "is not a finite number"),
        ((p < -RANGE_TOLERANCE) | (p > 1 + RANGE_TOLERANCE), "is not within [0, 1]"),
    ):
        if bad.any():
            row, column = (int(index[0]) for index in np.nonzero(bad))
            raise DataError(
                f"{p[row, column]} {problem}",
                file=path,
                row=row + 1,
                column=PROBABILITY_COLUMNS[column],
                hint="give probabilities, not logits; NaN means that the model's output is broken",
            )
    clipped = np.clip(p, 0.0, 1.0)
    sums = clipped.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1) > sum_tolerance)
    if off.size:
        problem = f"the three probabilities sum to {sums[off[0]]:.9g}, not 1"
        raise DataError(problem, file=path, row=int(off[0]) + 1, hint="divide each row by its sum")
    return clipped


def _order(path: Path, ids: list[str], expected_ids: Sequence[str]) -> list[int]:
    row_of = {name: row for row, name in enumerate(ids)}
    missing = [name for name in expected_ids if name not in row_of]
    if missing:
        problem = f"{len(missing)} of {len(expected_ids)} ids are missing, the first {missing[0][:80]!r}"
        raise DataError(problem, file=path, column="id", hint="predict the same test file")
    extra = set(ids).difference(expected_ids)
    if extra:
        row = next(row for row, name in enumerate(ids, start=1) if name in extra)
        problem = f"{len(extra)} ids are not in the test file, the first {ids[row - 1][:80]!r}"
        raise DataError(problem, file=path, row=row, column="id", hint="predict the same test file")
    return [row_of[name] for name in expected_ids]


def _as_csv(ids: Sequence[str], probabilities: np.ndarray) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if any("\r" in name for name in ids):
        # A bare carriage return would end the line for a reader, but csv quotes only its own line end by itself.
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(HEADER)
    writer.writerows([name, *row] for name, row in zip(ids, probabilities.tolist(), strict=True))
    return text.getvalue()
