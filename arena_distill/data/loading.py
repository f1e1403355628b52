"""Data files to canonical rows (see ``records``), with every repair and drop counted and every refusal located."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.cells import TextColumn
from arena_distill.data.identity import prompt_hashes, row_hashes
from arena_distill.data.labels import LABEL_COLUMNS, VoteReader, hard_labels, label_columns
from arena_distill.data.raw import RawFile, as_strings
from arena_distill.data.reading import open_raw
from arena_distill.data.records import SCHEMA, TEXT_COLUMNS, Rows
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer (null or blank)"
IDENTICAL_ANSWERS = "identical answers"
TURNS_DIFFER = "prompt and answers differ in their number of turns"
DUPLICATE_ID = "id that an earlier row has too"
NO_LABEL = "no label"
NO_TEXT = "prompt and both answers empty"


@dataclass(frozen=True)
class Loaded:
    """Canonical rows of one file, and what loading did to it."""

    rows: Rows
    summary: LoadSummary


def load_labelled(path: str | PathLike[str]) -> Loaded:
    """Load a training file: its usable rows in file order, ``base_idx`` 0 … N-1.

    A row without a label, or without any text, is unusable: it is dropped and counted.

    Raises:
        DataError: the file cannot be used; names file, row and column, and what to do.
    """
    path = Path(path)
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    _require_columns(file, TEXT_COLUMNS)
    labels = label_columns(file.columns, path)
    if not labels:
        styles = "winner, or winner_model_a, winner_model_b and winner_tie (or the same with _prob)"
        raise DataError(f"has no label columns; it has {_names(file)}", file=path, hint=f"add {styles}")
    rows = _read_rows(file, summary, labels)
    if not len(rows):
        raise DataError("has no usable rows", file=path, hint=f"see what was dropped: {summary}")
    _count_duplicate_ids(rows, summary)
    return Loaded(rows.set_column(7, SCHEMA.field("base_idx"), pa.array(np.arange(len(rows)))), summary)


def load_test(path: str | PathLike[str]) -> Loaded:
    """Load a file to predict: every row, in file order, with unique ids. Label columns in it are not read.

    Raises:
        DataError: the file cannot be used; names file, row and column, and what to do.
    """
    path = Path(path)
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    _require_columns(file, ("id", *TEXT_COLUMNS))
    if present := [name for name in LABEL_COLUMNS if name in file.columns]:
        summary.note(
            f"label columns not read: {', '.join(present)} (to score against them, give the file as labels too)"
        )
    rows = _read_rows(file, summary, [])
    if not len(rows):
        raise DataError("has a header but no rows", file=path, hint="add the rows to predict")
    _refuse_bad_ids(rows["id"], path)
    return Loaded(rows, summary)


def load_texts(path: str | PathLike[str]) -> Rows:
    """Load any preference file for its texts alone: labels and ids are neither needed nor read."""
    path = Path(path)
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    _require_columns(file, TEXT_COLUMNS)
    rows = _read_rows(file, summary, [])
    if not len(rows):
        raise DataError("has a header but no rows", file=path, hint="add rows")
    return rows


def load_labels(path: str | PathLike[str], ids: list[str]) -> np.ndarray:
    """Votes of a labels file for the rows ``ids``, float64 ``[N, 3]`` in their order.

    Raises:
        DataError: no label columns, a duplicate or missing id, or a vote that cannot be read.
    """
    path = Path(path)
    summary = LoadSummary(str(path))
    file = open_raw(path, summary)
    _require_columns(file, ("id",))
    labels = label_columns(file.columns, path)
    if not labels:
        raise DataError(
            f"has no label columns; it has {_names(file)}", file=path, hint="add winner or winner_model_a …"
        )
    reader = VoteReader(path, labels, summary)
    votes, found, rows_read = [], [], 0
    for batch in file.batches(["id", *labels], summary):
        votes.append(reader.votes(batch, rows_read))
        found.append(_ids(batch["id"], path, rows_read))
        rows_read += len(found[-1])
    if not rows_read:
        raise DataError("has a header but no rows", file=path, hint="add the labels")
    table = pa.chunked_array(found, pa.string())
    _refuse_bad_ids(table, path)
    position = pc.index_in(pa.array(ids, pa.string()), table)
    if position.null_count:
        missing = ids[position.to_pylist().index(None)]
        raise DataError(
            f"has no row for id {missing!r} ({position.null_count} missing)", file=path, hint="add the rows"
        )
    ordered = np.concatenate(votes)[position.to_numpy()]
    if (empty := np.isnan(ordered).any(axis=1)).any():
        row = int(position[int(np.flatnonzero(empty)[0])].as_py()) + 1
        raise DataError("has an id without a label", file=path, row=row, hint="fill it in or leave the row out")
    return ordered


def _require_columns(file: RawFile, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in file.columns]
    if missing:
        raise DataError(
            f"has no column {', '.join(map(repr, missing))}; it has {_names(file)}", file=file.path,
            hint="rename or add the column (see the README's data section)",
        )  # fmt: skip


def _names(file: RawFile) -> str:
    return ", ".join(name[:40] for name in list(file.columns)[:12]) or "no columns"


def _read_rows(file: RawFile, summary: LoadSummary, labels: list[str]) -> Rows:
    texts = {name: TextColumn(file.path, name, summary) for name in TEXT_COLUMNS}
    reader = VoteReader(file.path, labels, summary) if labels else None
    has_id = "id" in file.columns
    if not has_id:
        summary.note("no id column: ids are row numbers")
    wanted = [*(["id"] if has_id else []), *TEXT_COLUMNS, *labels]
    tables = []
    for batch in file.batches(wanted, summary):
        columns = {name: texts[name].turns(batch[name], summary.rows_read) for name in TEXT_COLUMNS}
        count = len(columns["prompt"])
        votes = reader.votes(batch, summary.rows_read) if reader else np.full((count, 3), np.nan)
        ids = _ids(batch["id"], file.path, summary.rows_read) if has_id else _row_numbers(summary.rows_read, count)
        summary.rows_read += count
        table = _canonical(ids, columns, votes, file.path.name)
        if labels:
            table = _drop_unusable(table, votes, columns, summary)
        _count_oddities(table, summary)
        tables.append(table)
    rows = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    summary.rows_used = len(rows)
    return rows


def _canonical(ids: pa.Array, texts: dict[str, pa.ListArray], votes: np.ndarray, source: str) -> Rows:
    count = len(ids)
    labelled = ~np.isnan(votes[:, 0])
    soft = labelled & (np.nan_to_num(votes).max(axis=1) < 1)
    label = pa.array(hard_labels(np.nan_to_num(votes)), mask=~labelled)
    target = pa.FixedSizeListArray.from_arrays(pa.array(np.nan_to_num(votes).ravel()), 3)
    target = pc.if_else(pa.array(soft), target, pa.nulls(count, target.type))
    return pa.table(
        {
            "id": ids,
            **texts,
            "label": label,
            "target": target,
            "source": pa.array([source] * count, pa.string()),
            "base_idx": pa.nulls(count, pa.int64()),
            "row_hash": row_hashes(texts),
            "prompt_hash": prompt_hashes(texts["prompt"]),
        },
        schema=SCHEMA,
    )


def _ids(column: pa.Array, path: Path, rows_before: int) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.fill_null(as_strings(column, path, "id", rows_before), ""))


def _row_numbers(start: int, count: int) -> pa.Array:
    return pa.array(np.arange(start + 1, start + count + 1)).cast(pa.string())


def _is_blank(turns: pa.ListArray) -> np.ndarray:
    """Whether a text has no turn with anything but white space, bool ``[N]``."""
    joined = pc.binary_join(_no_nulls(turns), "")
    return np.asarray(pc.equal(pc.utf8_trim_whitespace(joined), "").to_numpy(zero_copy_only=False))


def _no_nulls(turns: pa.ListArray) -> pa.ListArray:
    offsets = pc.subtract(turns.offsets, turns.offsets[0]).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, pc.fill_null(turns.flatten(), ""))


def _drop_unusable(table: Rows, votes: np.ndarray, texts: dict[str, pa.ListArray], summary: LoadSummary) -> Rows:
    unlabelled = np.isnan(votes[:, 0])
    textless = np.logical_and.reduce([_is_blank(column) for column in texts.values()]) & ~unlabelled
    summary.dropped(NO_LABEL, int(unlabelled.sum()))
    summary.dropped(NO_TEXT, int(textless.sum()))
    drop = unlabelled | textless
    return table.filter(pa.array(~drop)) if drop.any() else table


def _count_oddities(table: Rows, summary: LoadSummary) -> None:
    for chunk in table.to_batches():
        prompt, a, b = (chunk.column(name) for name in TEXT_COLUMNS)
        summary.repaired(EMPTY_PROMPT, int(_is_blank(prompt).sum()))
        summary.repaired(EMPTY_ANSWER, int((_is_blank(a) | _is_blank(b)).sum()))
        same = pc.equal(pc.binary_join(_no_nulls(a), "\x1f"), pc.binary_join(_no_nulls(b), "\x1f"))
        summary.repaired(IDENTICAL_ANSWERS, pc.sum(same).as_py() or 0)
        turns = [pc.list_value_length(column) for column in (prompt, a, b)]
        differ = pc.or_(pc.not_equal(turns[0], turns[1]), pc.not_equal(turns[0], turns[2]))
        summary.repaired(TURNS_DIFFER, pc.sum(differ).as_py() or 0)


def _count_duplicate_ids(rows: Rows, summary: LoadSummary) -> None:
    summary.repaired(DUPLICATE_ID, len(rows) - pc.count_distinct(rows["id"]).as_py())


def _refuse_bad_ids(ids: pa.ChunkedArray, path: Path) -> None:
    if pc.any(pc.equal(ids, "")).as_py():
        row = ids.to_pylist().index("") + 1
        raise DataError("has no id", file=path, row=row, column="id", hint="every row needs an id of its own")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    first: dict[str, int] = {}
    for row, value in enumerate(ids.to_pylist(), start=1):
        if first.setdefault(value, row) != row:
            raise DataError(
                f"id {value!r} stands already in row {first[value]}", file=path, row=row, column="id",
                hint="every row needs an id of its own",
            )  # fmt: skip
