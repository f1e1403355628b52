"""The out-of-fold table: who said what of which row, and a validator that believes none of it.

A long table, one line for each family and base row: ``id, row_hash, base_idx, fold, family``, raw logits, probabilities
and the swap gap (L1 distance between the predictions of both orders, 0 to 2). Families come one after the other, rows
by ``base_idx``. Step 5 reads it through ``read_oof_table``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data.folds import Folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.runtime.artifacts import read_manifest_file, sha256_file
from arena_distill.runtime.errors import DataError
from arena_distill.runtime.stages import ENSEMBLE

LOGIT_COLUMNS = ("logit_model_a", "logit_model_b", "logit_tie")
PROBABILITY_COLUMNS = ("p_model_a", "p_model_b", "p_tie")
TABLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("row_hash", pa.string()),
        pa.field("base_idx", pa.int64()),
        pa.field("fold", pa.int8()),
        pa.field("family", pa.string()),
        *(pa.field(name, pa.float32()) for name in LOGIT_COLUMNS),
        *(pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS),
        pa.field("swap_gap", pa.float64()),
    ]
)
SUM_TOLERANCE = 1e-6
SOFTMAX_TOLERANCE = 1e-5
_HINT = "run step 4 again (INFER_FORCE_REGEN=1), with the data and folds that the teachers were trained with"


@dataclass(frozen=True)
class OofFamily:
    """One family's say on every base row, by ``base_idx``."""

    logits: np.ndarray  # float32 [N, 3]
    probabilities: np.ndarray  # float64 [N, 3]
    swap_gap: np.ndarray  # float64 [N]


def manifest_path(table: Path) -> Path:
    """Where the table's manifest is."""
    return table.with_suffix(".manifest.json")


def build_table(families: dict[str, OofFamily], rows: Rows, folds: Folds) -> pa.Table:
    """The long table; with several families an ``ensemble`` follows, the mean of their probabilities.

    The ensemble's logits are the logarithms of its probabilities, so that their softmax is what was averaged.
    """
    parts = dict(families)
    if len(families) > 1:
        mean = np.mean([family.probabilities for family in families.values()], axis=0)
        logits = np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)
        gap = np.mean([family.swap_gap for family in families.values()], axis=0)
        parts[ENSEMBLE] = OofFamily(logits, softmax(logits), gap)
    count = len(rows)
    tables = [
        pa.table(
            {
                "id": rows["id"].combine_chunks(),
                "row_hash": rows["row_hash"].combine_chunks(),
                "base_idx": np.arange(count),
                "fold": folds.fold,
                "family": pa.array([name] * count, pa.string()),
                **{column: family.logits[:, k] for k, column in enumerate(LOGIT_COLUMNS)},
                **{column: family.probabilities[:, k] for k, column in enumerate(PROBABILITY_COLUMNS)},
                "swap_gap": family.swap_gap,
            },
            schema=TABLE_SCHEMA,
        )
        for name, family in parts.items()
    ]
    return pa.concat_tables(tables).combine_chunks()


def read_oof_table(path: Path, rows: Rows, folds: Folds) -> dict[str, OofFamily]:
    """Read the table and check all that it claims against the data file and the folds file.

    Args:
        path: ``oof_probs.parquet``, with its manifest beside it.
        rows: all base rows in ``base_idx`` order.
        folds: which fold holds out which row; must be of these rows.

    Returns:
        Each family (and the ensemble, where there is one) in the table's order.

    Raises:
        DataError: the table is missing, torn or was changed; a row is absent or stands twice; a fold or row hash is not
            that of the files at hand; a number is not finite, or probabilities are not the softmax of the logits.
    """
    if folds.rows_sha256 != rows_sha256(rows):
        raise DataError("cannot be checked: data file and folds file do not belong together", file=path, hint=_HINT)
    table = _read(path)
    families = {}
    names = table["family"].combine_chunks().dictionary_encode()
    if names.null_count or not len(table):
        raise DataError("has rows of no family, or no rows", file=path, column="family", hint=_HINT)
    for code, name in enumerate(names.dictionary.to_pylist()):
        place = np.flatnonzero(names.indices.to_numpy() == code)
        families[name] = _checked_family(table.take(place), place, name, rows, folds, path)
    recorded = read_manifest_file(manifest_path(path))
    if recorded is None or recorded["outputs"].get(path.name) != sha256_file(path):
        raise DataError(
            f"was changed since step 4 wrote it, or has lost {manifest_path(path).name}", file=path, hint=_HINT
        )
    return families


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError("no such out-of-fold table", file=path, hint="run step 4 first")
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({str(error)[:100]})", file=path, hint=_HINT) from error
    if missing := [field.name for field in TABLE_SCHEMA if field.name not in table.column_names]:
        raise DataError("the column is missing", file=path, column=missing[0], hint=_HINT)
    try:
        return table.select(TABLE_SCHEMA.names).cast(TABLE_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"has columns of other types ({str(error)[:100]})", file=path, hint=_HINT) from error


def _checked_family(table: pa.Table, place: np.ndarray, name: str, rows: Rows, folds: Folds, path: Path) -> OofFamily:
    def refuse(bad: np.ndarray, column: str, problem: Any) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{problem(row)} (family {name})", file=path, row=int(place[row]) + 1, column=column, hint=_HINT
            )

    count = len(rows)
    index = table["base_idx"].fill_null(-1).to_numpy()
    refuse((index < 0) | (index >= count), "base_idx", lambda r: f"base row {index[r]} does not exist")
    order = np.argsort(index, kind="stable")
    again = np.zeros(len(index), dtype=bool)
    again[order[1:]] = np.diff(index[order]) == 0
    refuse(again, "base_idx", lambda r: f"base row {index[r]} stands twice")
    if len(index) < count:
        absent = int(np.setdiff1d(np.arange(count), index)[0])
        raise DataError(
            f"base row {absent} is missing, and {count - len(index) - 1} more (family {name})", file=path, hint=_HINT
        )
    fold = table["fold"].fill_null(-1).to_numpy()
    refuse(fold != folds.fold[index], "fold", lambda r: f"says fold {fold[r]}, the folds file {folds.fold[index[r]]}")
    for column in ("row_hash", "id"):
        given = np.array(table[column].to_pylist(), dtype=object)
        known = np.array(rows[column].to_pylist(), dtype=object)[index]
        refuse(given != known, column, lambda r, k=known, c=column: f"is not that of the data file ({c} {k[r]!r})")
    logits = np.column_stack([table[column].to_numpy() for column in LOGIT_COLUMNS])
    p = np.column_stack([table[column].to_numpy() for column in PROBABILITY_COLUMNS])
    gap = table["swap_gap"].to_numpy()
    for column in (*LOGIT_COLUMNS, *PROBABILITY_COLUMNS):
        refuse(~np.isfinite(table[column].to_numpy()), column, lambda r: "is not finite")
    if not np.isnan(gap).all():  # all: only one order was scored
        refuse(~np.isfinite(gap), "swap_gap", lambda r: "is not finite")
    refuse(np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE, PROBABILITY_COLUMNS[0], lambda r: "probabilities do not sum to 1")
    off = np.abs(softmax(logits) - p).max(axis=1)
    refuse(off > SOFTMAX_TOLERANCE, PROBABILITY_COLUMNS[0], lambda r: "probabilities are not the softmax of the logits")
    return OofFamily(logits[order], p[order], gap[order])
