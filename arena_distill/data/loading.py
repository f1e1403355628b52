"""Data files to canonical rows (see ``records``), with every repair and drop counted and every refusal located."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.buffers import first_bytes
from arena_distill.data.cells import TextColumn
from arena_distill.data.identity import prompt_hashes, row_hashes
from arena_distill.data.in_order import in_order
from arena_distill.data.labels import LABEL_COLUMNS, VoteReader, hard_labels, label_columns
from arena_distill.data.raw import RawFile, as_strings, is_text
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


@dataclass(frozen=True)
class _Batch:
    """Some rows of a file as they were read; what their reading and converting takes is counted apart."""

    columns: dict[str, pa.Array]
    rows_before: int
    summary: LoadSummary

    def __len__(self) -> int:
        return len(self.columns["prompt"])


def _read_rows(file: RawFile, summary: LoadSummary, labels: list[str]) -> Rows:
    _use_system_allocator()
    if "id" not in file.columns:
        summary.note("no id column: ids are row numbers")
    converter = _Converter(file, labels)
    reading = LoadSummary(str(file.path))
    converted = []
    with closing(_batches(file, converter.wanted, reading)) as batches:
        for rows, part in in_order(converter.convert, batches, alone=converter.layout_unknown):
            converted.append(rows)
            summary.add(part)
    summary.add(reading)
    _release_unused_memory()
    table = pa.Table.from_batches(converted, SCHEMA)
    summary.rows_used = len(table)
    return table


def _use_system_allocator() -> None:
    """Have Arrow ask for small pages: its own allocator asks for huge ones, which a virtual machine is slow to give."""
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:  # then the user has chosen
        pa.set_memory_pool(pa.system_memory_pool())


def _release_unused_memory() -> None:
    """Give back what only the reading took: the blocks between those that are kept, which allocators hold on to."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it
        trim(0)


def _batches(file: RawFile, wanted: list[str], reading: LoadSummary) -> Generator[_Batch, None, None]:
    rows_read = 0
    for columns in file.batches(wanted, reading):
        batch = _Batch(columns, rows_read, reading.take())
        rows_read += len(batch)
        yield batch


class _Converter:
    """Raw batches of one file to canonical rows, several at a time once the layouts of its text columns are known."""

    def __init__(self, file: RawFile, labels: list[str]) -> None:
        self.file, self.labels = file, labels
        self.wanted = [*(["id"] if "id" in file.columns else []), *TEXT_COLUMNS, *labels]
        self.layouts: dict[str, bool | None] = dict.fromkeys(TEXT_COLUMNS)

    def layout_unknown(self, batch: _Batch) -> bool:
        """Whether the batch may tell a layout that later ones need."""
        return any(self.layouts[name] is None and is_text(batch.columns[name].type) for name in TEXT_COLUMNS)

    def convert(self, batch: _Batch) -> tuple[pa.RecordBatch, LoadSummary]:
        """The usable rows of a batch, and its summary."""
        path, summary, count = self.file.path, batch.summary, len(batch)
        texts = {}
        for name in TEXT_COLUMNS:
            column = TextColumn(path, name, summary, self.layouts[name], self.file.valid_strings)
            texts[name] = column.turns(batch.columns[name], batch.rows_before)
            self.layouts[name] = column.holds_lists
        if self.labels:
            votes = VoteReader(path, self.labels, summary).votes(batch.columns, batch.rows_before)
        else:
            votes = np.full((count, 3), np.nan)
        if "id" in batch.columns:
            ids = _ids(batch.columns["id"], path, batch.rows_before)
        else:
            ids = _row_numbers(batch.rows_before, count)
        summary.rows_read += count
        rows = _canonical(ids, texts, votes, path.name)
        blank = {name: _is_blank(column) for name, column in texts.items()}
        if self.labels:
            usable = _usable(votes, blank, summary)
            if not usable.all():
                rows = rows.filter(pa.array(usable))
                blank = {name: column[usable] for name, column in blank.items()}
        _count_oddities(rows, blank, summary)
        return rows, summary


def _canonical(ids: pa.Array, texts: dict[str, pa.ListArray], votes: np.ndarray, source: str) -> pa.RecordBatch:
    count = len(ids)
    labelled = ~np.isnan(votes[:, 0])
    soft = labelled & (np.nan_to_num(votes).max(axis=1) < 1)
    label = pa.array(hard_labels(np.nan_to_num(votes)), mask=~labelled)
    target = pa.FixedSizeListArray.from_arrays(pa.array(np.nan_to_num(votes).ravel()), 3)
    target = pc.if_else(pa.array(soft), target, pa.nulls(count, target.type))
    return pa.RecordBatch.from_pydict(
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
    values = turns.flatten()
    first = first_bytes(values)
    printed = (first > ord(" ")) & (first < 0x7F)  # most turns begin with a character that settles it
    if values.null_count:
        printed &= values.is_valid().to_numpy(zero_copy_only=False)
    counted = np.concatenate([np.zeros(1, np.int64), np.cumsum(printed)])
    offsets = _offsets(turns)
    blank = counted[offsets[1:]] == counted[offsets[:-1]]
    if blank.any():
        joined = pc.binary_join(_no_nulls(turns.filter(pa.array(blank))), "")
        blank[blank] = pc.equal(pc.utf8_trim_whitespace(joined), "").to_numpy(zero_copy_only=False)
    return np.asarray(blank)


def _offsets(turns: pa.ListArray) -> np.ndarray:
    """Where each row begins among ``turns.flatten()``, and the last one ends, int32 ``[N + 1]``."""
    offsets = turns.offsets.to_numpy()
    return np.asarray(offsets - offsets[0])


def _no_nulls(turns: pa.ListArray) -> pa.ListArray:
    values = turns.flatten()
    return pa.ListArray.from_arrays(
        pa.array(_offsets(turns)), pc.fill_null(values, "") if values.null_count else values
    )


def _usable(votes: np.ndarray, blank: dict[str, np.ndarray], summary: LoadSummary) -> np.ndarray:
    """Which rows have a vote and any text, bool ``[N]``; the others are counted as dropped."""
    unlabelled = np.isnan(votes[:, 0])
    textless = np.logical_and.reduce(list(blank.values())) & ~unlabelled
    summary.dropped(NO_LABEL, int(unlabelled.sum()))
    summary.dropped(NO_TEXT, int(textless.sum()))
    return np.asarray(~(unlabelled | textless))


def _count_oddities(rows: pa.RecordBatch, blank: dict[str, np.ndarray], summary: LoadSummary) -> None:
    prompt, a, b = (rows.column(name) for name in TEXT_COLUMNS)
    summary.repaired(EMPTY_PROMPT, int(blank["prompt"].sum()))
    summary.repaired(EMPTY_ANSWER, int((blank["response_a"] | blank["response_b"]).sum()))
    summary.repaired(IDENTICAL_ANSWERS, _count_equal(a, b))
    turns = [np.diff(_offsets(column)) for column in (prompt, a, b)]
    summary.repaired(TURNS_DIFFER, int(((turns[0] != turns[1]) | (turns[0] != turns[2])).sum()))


def _count_equal(a: pa.ListArray, b: pa.ListArray) -> int:
    """Rows that have the same text in ``a`` and ``b``, a null turn being as good as an empty one."""
    sizes = [_joined_sizes(answers) for answers in (a, b)]
    alike = pa.array(sizes[0] == sizes[1])  # few rows are, and those are compared
    texts = [pc.binary_join(_no_nulls(answers.filter(alike)), "\x1f") for answers in (a, b)]
    return pc.sum(pc.equal(*texts)).as_py() or 0


def _joined_sizes(turns: pa.ListArray) -> np.ndarray:
    """Bytes of the turns of each row, and as many more as there are turns, int64 ``[N]``."""
    sizes = pc.fill_null(pc.binary_length(turns.flatten()), 0).to_numpy()
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    offsets = _offsets(turns)
    return np.asarray(np.diff(total[offsets] + offsets))


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
