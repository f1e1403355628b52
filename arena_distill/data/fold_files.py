"""Rows of a fold as ``fold_K_train.csv`` and ``fold_K_val.csv`` in Kaggle's layout, written and read without loss.

Texts are JSON lists of turns. ``base_idx``, ``source`` and ``row_hash`` stand beside Kaggle's columns, so that a later
stage can join the rows with teacher logits and notice a text that somebody has changed.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from arena_distill.data.loading import load_labelled
from arena_distill.data.reading import open_raw
from arena_distill.data.records import EXTRA_BASE_IDX, PROBABILITY_COLUMNS, SCHEMA, TEXT_COLUMNS, Rows, targets
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError, InputError

COLUMNS = ("id", "base_idx", "source", "row_hash", *TEXT_COLUMNS, *PROBABILITY_COLUMNS)

_OWN_COLUMNS = ["base_idx", "source", "row_hash"]  # those that load_labelled does not know
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_REMEDY = "make the fold files again (step2_make_folds.sh)"


def fold_csv(directory: Path, fold: int, part: Literal["train", "val"]) -> Path:
    """Where one part of one fold is."""
    return directory / f"fold_{fold}_{part}.csv"


def write_fold_csv(rows: Rows, path: Path) -> None:
    """Write rows so that ``load_labelled`` and ``read_fold_csv`` give back the same texts, votes and hashes.

    Raises:
        InputError: the disk is full or fails.
    """
    votes = _as_read_back(targets(rows))
    start = 0
    try:
        with pa.OSFile(str(path), "wb") as file:
            file.write(",".join(COLUMNS).encode() + b"\n")
            for batch in rows.to_batches():
                table = _kaggle_columns(batch, votes[start : start + len(batch)])
                pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=False))
                start += len(batch)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}) -> make room there, or choose another place") from error


def read_fold_csv(path: Path) -> Rows:
    """Rows of a file that ``write_fold_csv`` made, with the ``base_idx`` and ``source`` they had.

    Raises:
        DataError: a column or row is missing or broken, or a text is not the one that was written.
    """
    loaded = load_labelled(path)
    rows = loaded.rows
    own = _own_columns(path)
    base_idx = _base_idx(own["base_idx"].to_pylist(), path)
    if len(base_idx) != len(rows):
        raise DataError(f"has rows that cannot be used: {dict(loaded.summary.drops)}", file=path, hint=_REMEDY)
    changed = np.flatnonzero(pc.not_equal(own["row_hash"], rows["row_hash"]).to_numpy())
    if len(changed):
        first = int(changed[0])
        written, found = own["row_hash"][first].as_py(), rows["row_hash"][first].as_py()
        problem = f"is {written!r}, but the row's texts now have {found!r}; {len(changed):,} rows were changed"
        raise DataError(problem, file=path, row=first + 1, column="row_hash", hint=_REMEDY)
    for name, column in (("base_idx", pa.array(base_idx)), ("source", own["source"])):
        rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return rows


def _own_columns(path: Path) -> Rows:
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    if missing := [name for name in _OWN_COLUMNS if name not in file.columns]:
        raise DataError(f"has no column {', '.join(missing)}: it is no fold file of ours", file=path, hint=_REMEDY)
    return pa.concat_tables([pa.table(batch) for batch in file.batches(_OWN_COLUMNS, summary)])


def _base_idx(cells: list[str], path: Path) -> np.ndarray:
    """Numbers of the base rows, int64 ``[N]``: -1 for an extra row, else no number twice."""
    first_row: dict[int, int] = {}
    for row, cell in enumerate(cells, start=1):
        number = int(cell) if _WHOLE.fullmatch(cell) else None
        problem = ""
        if number is None or number < EXTRA_BASE_IDX:
            problem = f"{cell!r} is neither the number of a base row nor {EXTRA_BASE_IDX}"
        elif number != EXTRA_BASE_IDX and first_row.setdefault(number, row) != row:
            problem = f"base row {number} stands already in row {first_row[number]}"
        if problem:
            raise DataError(problem, file=path, row=row, column="base_idx", hint=_REMEDY)
    return np.array(cells, dtype=np.int64)


def _kaggle_columns(batch: pa.RecordBatch, votes: np.ndarray) -> pa.Table:
    columns = {name: batch.column(name) for name in ("id", *_OWN_COLUMNS)}
    columns |= {name: _json_lists(batch.column(name)) for name in TEXT_COLUMNS}
    columns |= {name: pa.array(votes[:, place]) for place, name in enumerate(PROBABILITY_COLUMNS)}
    return pa.table({name: columns[name] for name in COLUMNS})


def _json_lists(turns: pa.ListArray) -> pa.Array:
    """Each list of turns as JSON text, list<string> ``[N]`` -> string ``[N]``."""
    texts = ["null" if turn is None else encode_basestring(turn) for turn in turns.flatten().to_pylist()]
    offsets = pc.subtract(turns.offsets, turns.offsets[0]).cast(pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string())), ", ")
    return pc.binary_join_element_wise("[", joined, "]", "")


def _as_read_back(votes: np.ndarray) -> np.ndarray:
    """Shares to write so that the loader, which divides by their sum, has ``votes`` to the last bit; ``[N, 3]``.

    One triple in twenty sums to 1 only but for the last bit and would come back changed there. Those are scaled, by
    less than 1e-9, until rounding falls the right way.
    """
    written, off = votes.copy(), np.arange(len(votes))
    rng = np.random.default_rng(0)
    for _ in range(50_000):
        again = written[off] / written[off].sum(axis=1)[:, None]
        off = off[(again != votes[off]).any(axis=1)]
        if not len(off):
            break
        written[off] = votes[off] * (1 + rng.uniform(-1e-9, 1e-9, (len(off), 1)))
    return written
