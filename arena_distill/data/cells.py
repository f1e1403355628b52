"""Text cells as lists of turns, whole columns at a time.

A text column is in one of two layouts. In the list layout (Kaggle's) a cell is a JSON list of turns, one string or
null each. In the plain layout a cell is the text itself, one turn, even where it happens to begin with a bracket.
The layout is decided once per column, by the majority of the first block's non-empty cells.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from arena_distill.data.reading import LONE_SURROGATE, without_surrogates
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

TURNS = pa.list_(pa.string())

NOT_TEXT = "number or boolean turned into text"
NUL_BYTE = "NUL byte removed"
PLAIN_AMONG_LISTS = "plain text among JSON lists, taken as one turn"
PYTHON_LIST = "Python list (single quotes, None) read as a JSON list"
RAW_CONTROL = "unescaped line break or tab inside a JSON string accepted"

_LIST_START = r'^\s*\[\s*(["\'\]]|null|None)'


class TextColumn:
    """Reads one text column of one file, batch after batch."""

    def __init__(self, file: Path, name: str, summary: LoadSummary) -> None:
        self.file, self.name, self.summary = file, name, summary
        self.holds_lists: bool | None = None  # of string columns; unknown until the first non-empty cell

    def turns(self, column: pa.Array, rows_before: int) -> pa.ListArray:
        """The column as list<string>, one list a row; an empty or null cell is ``[null]``.

        Raises:
            DataError: a broken list, or a cell that holds something other than text; names row and column.
        """
        kind = column.type
        if pa.types.is_dictionary(kind):
            return self.turns(column.dictionary_decode(), rows_before)
        if pa.types.is_null(kind):
            return _one_turn(pa.nulls(len(column), pa.string()))
        if _is_list(kind) and not pa.types.is_nested(kind.value_type):
            return self._from_lists(column)
        if _is_string(kind):
            return self._from_strings(column.cast(pa.string()), rows_before)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            self.summary.repaired(NOT_TEXT, len(column) - column.null_count)
            return _one_turn(column.cast(pa.string()))
        raise DataError(
            f"holds {kind}, not text", file=self.file, column=self.name,
            hint="each cell must be a text, or a list with one text per turn",
        )  # fmt: skip

    def _from_lists(self, column: pa.Array) -> pa.ListArray:
        values = column.flatten()
        if not _is_string(values.type):
            self.summary.repaired(NOT_TEXT, len(values) - values.null_count)
        values = self._without_nul(values.cast(pa.string()))
        offsets = pc.subtract(column.offsets, column.offsets[0]).cast(pa.int32())
        if column.null_count:  # a null list becomes [null], like an empty cell
            return pa.array(
                [row if row else [None] for row in pa.ListArray.from_arrays(offsets, values).to_pylist()], TURNS
            )
        return _never_empty(pa.ListArray.from_arrays(offsets, values))

    def _from_strings(self, column: pa.Array, rows_before: int) -> pa.ListArray:
        column = self._without_nul(column)
        filled = pc.fill_null(column, "")
        empty = pc.equal(pc.utf8_trim_whitespace(filled), "")
        if self.holds_lists is None:
            non_empty = len(column) - pc.sum(empty).as_py()
            if not non_empty:
                return _one_turn(pa.nulls(len(column), pa.string()))
            self.holds_lists = 2 * (pc.sum(pc.match_substring_regex(filled, _LIST_START)).as_py() or 0) >= non_empty
        if not self.holds_lists:
            return _one_turn(pc.if_else(empty, None, column))
        parsed = _parse_json_lists(pc.if_else(empty, "[null]", filled))
        return parsed if parsed is not None else self._parse_one_by_one(filled, rows_before)

    def _parse_one_by_one(self, column: pa.Array, rows_before: int) -> pa.ListArray:
        rows = []
        for row, cell in enumerate(column.to_pylist(), start=rows_before + 1):
            try:
                turns, repairs = parse_cell(cell)
            except ValueError as error:
                raise DataError(
                    f"{error}: {cell[:60]!r}", file=self.file, row=row, column=self.name,
                    hint="write the turns with json.dumps",
                ) from error  # fmt: skip
            for repair in repairs:
                self.summary.repaired(repair, 1)
            rows.append(turns)
        return pa.array(rows, TURNS)

    def _without_nul(self, texts: pa.Array) -> pa.Array:
        has_nul = pc.match_substring(texts, "\0")
        if count := pc.sum(has_nul).as_py():
            self.summary.repaired(NUL_BYTE, count)
            texts = pc.replace_substring(texts, "\0", "")
        return texts


def parse_cell(cell: str) -> tuple[list[str | None], list[str]]:
    """Turns of one cell of a column in list layout, and the repairs that it took.

    Raises:
        ValueError: the cell is a broken list, or holds lists or objects inside its list.
    """
    stripped = cell.strip()
    if not stripped or stripped in ("null", "None"):
        return [None], []
    if not stripped.startswith("["):
        return [cell], [PLAIN_AMONG_LISTS]
    repairs: list[str] = []
    try:
        values = _load_keeping_digits(stripped)
    except ValueError as json_error:
        try:
            values = _load_keeping_digits(stripped, strict=False)
            repairs.append(RAW_CONTROL)
        except ValueError:
            try:
                values = ast.literal_eval(stripped)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise ValueError(f"broken JSON list ({json_error})") from None
            if not isinstance(values, list):
                raise ValueError(f"broken JSON list ({json_error})") from None
            repairs.append(PYTHON_LIST)
    except RecursionError:
        raise ValueError("broken JSON list (nested too deeply)") from None
    turns = [_turn(value, repairs) for value in values]
    return turns or [None], repairs


def _load_keeping_digits(text: str, strict: bool = True) -> Any:
    return json.loads(text, strict=strict, parse_float=_Number, parse_int=_Number, parse_constant=_Number)


class _Number(str):
    """A JSON number, kept in the digits of the file."""

    __slots__ = ()


def _turn(value: object, repairs: list[str]) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        repairs.append(NOT_TEXT)
        return "true" if value else "false"
    if isinstance(value, _Number | int | float):
        repairs.append(NOT_TEXT)
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the list holds a {'list' if isinstance(value, list | tuple) else 'JSON object'}, not texts")
    text = without_surrogates(value)
    if text != value:
        repairs.append(LONE_SURROGATE)
    if "\0" in text:
        repairs.append(NUL_BYTE)
        text = text.replace("\0", "")
    return text


def _parse_json_lists(cells: pa.Array) -> pa.ListArray | None:
    """All cells in one vectorised pass, or None where any of them is not a clean list of strings and nulls."""
    if pc.any(pc.match_substring_regex(cells, r"\\u0000|^\s*[^\s\[]")).as_py():
        return None
    lines = pc.binary_join_element_wise('{"turns":', cells, "}\n", "")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines), "")
    try:
        table = pa_json.read_json(
            pa.BufferReader(joined.buffers()[2]),
            read_options=pa_json.ReadOptions(block_size=max(joined.nbytes, 64)),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema([("turns", TURNS)]), unexpected_field_behavior="error"
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    # A cell such as `["a"]}{"turns":["b"]` would make two rows; those, and bare nulls, are told apart one by one.
    turns = table["turns"].combine_chunks()
    return _never_empty(turns) if len(turns) == len(cells) and not turns.null_count else None


def _never_empty(turns: pa.ListArray) -> pa.ListArray:
    if len(turns) and pc.min(pc.list_value_length(turns)).as_py() == 0:
        return pa.array([row or [None] for row in turns.to_pylist()], TURNS)
    return turns


def _one_turn(texts: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int32()), texts)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
