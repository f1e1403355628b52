"""What a student says of rows that it never trained on, never chose a checkpoint by, and was not calibrated on.

One Parquet file in the student's directory, so that training the student again takes it away. Ensembles take their
weights from it: any other row would flatter the student that knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from arena_distill.data.records import PROBABILITY_COLUMNS, Rows, targets
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import DataError

HELDOUT_FILE = "heldout_predictions.parquet"
PREDICTED_COLUMNS = ("p_model_a", "p_model_b", "p_tie")
HELDOUT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("row_hash", pa.string()),
        pa.field("base_idx", pa.int64()),
        pa.field("prompt_hash", pa.uint64()),
        *(pa.field(name, pa.float64()) for name in PREDICTED_COLUMNS),
        *(pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS),  # the votes
    ]
)
SUM_TOLERANCE = 1e-6
"""How far from 1 a row's probabilities, or its votes, may sum: float32 rounding."""

_HINT = "run student-calibrate again"


@dataclass(frozen=True)
class HeldOut:
    """Predictions and votes of N held-out base rows; classes in the order A, B, tie."""

    ids: list[str]
    row_hash: list[str]
    base_idx: np.ndarray  # int64 [N], each once
    prompt_hash: np.ndarray  # uint64 [N]
    probabilities: np.ndarray  # float64 [N, 3], calibrated
    targets: np.ndarray  # float64 [N, 3], votes


def write_heldout(path: str | PathLike[str], rows: Rows, probabilities: ArrayLike) -> None:
    """Write the predictions and the votes of held-out rows, complete or not at all.

    Args:
        path: the Parquet file.
        rows: labelled canonical base rows, ``N``.
        probabilities: ``[N, 3]`` in their order; each row within 1e-6 of summing to 1.

    Raises:
        DataError: as ``read_heldout``, so that nothing is written that it would refuse.
        ValueError: a row has neither a label nor a target.
    """
    path = Path(path)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(rows), 3):
        problem = f"probabilities must have shape [{len(rows)}, 3], not {list(p.shape)}"
        raise DataError(problem, file=path, hint="give one prediction a row")
    votes = targets(rows)
    columns = {name: rows[name].combine_chunks() for name in ("id", "row_hash", "base_idx", "prompt_hash")}
    columns |= {name: pa.array(p[:, k]) for k, name in enumerate(PREDICTED_COLUMNS)}
    columns |= {name: pa.array(votes[:, k]) for k, name in enumerate(PROBABILITY_COLUMNS)}
    table = pa.table(columns, schema=HELDOUT_SCHEMA)
    _checked(table, path)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_atomically(path, sink.getvalue().to_pybytes())


def read_heldout(path: str | PathLike[str]) -> HeldOut:
    """Read the predictions of held-out rows and believe none of it.

    Raises:
        DataError: the file is missing, torn or damaged; a column is missing, of another type or has a null; there are
            no rows; a ``base_idx`` is negative or stands twice; a number is not finite or negative, or three of them
            do not sum to 1. Names the row (from 1) and the column.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", file=path, hint=_HINT)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=_HINT) from error
    return _checked(table, path)


def _checked(table: pa.Table, path: Path) -> HeldOut:
    for field in HELDOUT_SCHEMA:
        found = table.column_names.count(field.name)
        if found != 1:
            problem = "the column is missing" if not found else "there are several columns of this name"
            raise DataError(problem, file=path, column=field.name, hint=_HINT)
        column = table[field.name]
        if column.type != field.type:
            problem = f"holds {column.type} instead of {field.type}"
            raise DataError(problem, file=path, column=field.name, hint=_HINT)
        if column.null_count:
            _refuse(column.is_null().to_numpy(), "holds nothing", path, field.name)
    if not len(table):
        raise DataError("has no rows", file=path, hint=_HINT)
    base_idx = table["base_idx"].to_numpy()
    _refuse(base_idx < 0, "is negative: extra rows are never held out", path, "base_idx")
    again = np.ones(len(base_idx), dtype=bool)
    again[np.unique(base_idx, return_index=True)[1]] = False
    _refuse(again, "stands in the file twice", path, "base_idx", base_idx)
    return HeldOut(
        ids=table["id"].to_pylist(),
        row_hash=table["row_hash"].to_pylist(),
        base_idx=base_idx,
        prompt_hash=table["prompt_hash"].to_numpy(),
        probabilities=_distribution(table, PREDICTED_COLUMNS, path),
        targets=_distribution(table, PROBABILITY_COLUMNS, path),
    )


def _distribution(table: pa.Table, columns: tuple[str, ...], path: Path) -> np.ndarray:
    values = np.column_stack([table[name].to_numpy() for name in columns])
    for k, name in enumerate(columns):
        _refuse(~np.isfinite(values[:, k]), "is not a finite number", path, name, values[:, k])
        _refuse(values[:, k] < 0, "is negative", path, name, values[:, k])
    sums = values.sum(axis=1)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    _refuse(off, f"is the sum of {', '.join(columns)} instead of 1", path, None, sums)
    return values


def _refuse(bad: np.ndarray, problem: str, path: Path, column: str | None, values: np.ndarray | None = None) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        shown = "" if values is None else f"{values[row]} "
        raise DataError(f"{shown}{problem}", file=path, row=row + 1, column=column, hint=_HINT)
