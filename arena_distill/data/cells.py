"""Text cells as lists of turns, whole columns at a time.

A text column is in one of two layouts. In the list layout (Kaggle's) a cell is a JSON list of turns, one string or
null each. In the plain layout a cell is the text itself, one turn, even where it happens to begin with a bracket.
The layout is decided once per column, by the majority of the first block's non-empty cells.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from arena_distill.data.buffers import bytes_of, first_bytes
from arena_distill.data.raw import is_text, valid_utf8
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

TURNS = pa.list_(pa.string())

NOT_TEXT = "number or boolean turned into text"
NUL_BYTE = "NUL byte removed"
PLAIN_AMONG_LISTS = "plain text among JSON lists, taken as one turn"
PYTHON_LIST = "Python list (single quotes, None) read as a JSON list"
LONE_SURROGATE = "half of a surrogate pair replaced by U+FFFD"
NAN = "NaN where a text should stand, taken as null"
RAW_CONTROL = "unescaped line break or tab inside a JSON string accepted"

# What opens like a list of texts, or is from end to end a list that begins with a number or boolean.
_LIST = r'(?s)^\s*\[\s*(?:["\'\]]|null|None|(?:true|false|True|False|NaN|-?\d[\d.eE+-]*)\s*(?:,.*)?\]\s*$)'


SMALL_PIECE = 256  # cells: so many, if one of them takes care, are parsed one by one

ESCAPED_NUL = re.compile(rb"\\u0000")
NULL_ROW = re.compile(rb"\}\s*null")  # a null after an object, where Arrow 26 would end the process


class TextColumn:
    """Reads one text column of one file, batch after batch.

    Args:
        file: for errors.
        name: of the column.
        summary: where repairs are counted.
        holds_lists: whether string cells are JSON lists; None until the first non-empty cell tells.
        valid_strings: whether ``string`` arrays are known to be valid UTF-8.
    """

    def __init__(
        self, file: Path, name: str, summary: LoadSummary, holds_lists: bool | None = None, valid_strings: bool = False
    ) -> None:
        self.file, self.name, self.summary = file, name, summary
        self.holds_lists, self.valid_strings = holds_lists, valid_strings

    def turns(self, column: pa.Array, rows_before: int) -> pa.ListArray:
        """The column as list<string>, one list a row; an empty or null cell is ``[null]``.

        Raises:
            DataError: a broken list, or a cell that holds something other than text; names row and column.
        """
        kind = column.type
        if pa.types.is_null(kind):
            return _one_turn(pa.nulls(len(column), pa.string()))
        if is_text(kind):
            if not (self.valid_strings and pa.types.is_string(kind)):
                column = valid_utf8(column, self.file, self.name, rows_before)
            return self._from_strings(column, rows_before)
        if _is_number(kind):
            self.summary.repaired(NOT_TEXT, len(column) - column.null_count)
            return _one_turn(column.cast(pa.string()))
        if _is_list(kind):
            inner = kind.value_type
            if is_text(inner) or _is_number(inner) or pa.types.is_null(inner):
                return self._from_lists(column.cast(pa.list_(inner)), inner, rows_before)
        raise DataError(
            f"holds {kind}, not text", file=self.file, column=self.name,
            hint="each cell must be a text, or a list with one text per turn",
        )  # fmt: skip

    def _from_lists(self, column: pa.ListArray, inner: pa.DataType, rows_before: int) -> pa.ListArray:
        values = column.flatten()  # leaves out what a null list hides
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        if is_text(inner):
            texts = self._valid_turns(values, lengths, rows_before)
        else:
            self.summary.repaired(NOT_TEXT, len(values) - values.null_count)
            texts = values.cast(pa.string())
        ends = np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int32)
        offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
        return _never_empty(pa.ListArray.from_arrays(offsets, self._without_nul(texts)))

    def _valid_turns(self, values: pa.Array, lengths: pa.Array, rows_before: int) -> pa.Array:
        try:
            return valid_utf8(values, self.file, self.name, 0)
        except DataError as error:
            assert error.row is not None
            turn = error.row - 1
            row = int(np.searchsorted(np.cumsum(lengths.to_numpy(zero_copy_only=False)), turn, side="right"))
            raise DataError(
                error.problem, file=self.file, row=rows_before + row + 1, column=self.name, hint=error.hint
            ) from error

    def _from_strings(self, column: pa.Array, rows_before: int) -> pa.ListArray:
        if self.holds_lists and not column.null_count and (first_bytes(column) == ord("[")).all():
            return self._parse(self._without_nul(column), rows_before)
        column = self._without_nul(column)
        filled = pc.fill_null(column, "")
        empty = pc.equal(pc.utf8_trim_whitespace(filled), "")
        if self.holds_lists is None:
            non_empty = len(column) - pc.sum(empty).as_py()
            if not non_empty:
                return _one_turn(pa.nulls(len(column), pa.string()))
            self.holds_lists = 2 * (pc.sum(pc.match_substring_regex(filled, _LIST)).as_py() or 0) >= non_empty
        if not self.holds_lists:
            return _one_turn(pc.if_else(empty, None, column))
        return self._parse(filled, rows_before)

    def _parse(self, cells: pa.Array, rows_before: int) -> pa.ListArray:
        """Cells of a column in list layout, vectorised but for the neighbourhood of those that take care."""
        parsed = _parse_json_lists(cells)
        if parsed is not None:
            return parsed
        if len(cells) <= SMALL_PIECE:
            return self._parse_one_by_one(cells, rows_before)
        half = len(cells) // 2
        return pa.concat_arrays([self._parse(cells[:half], rows_before), self._parse(cells[half:], rows_before + half)])

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
        data = bytes_of(texts)
        if not len(data) or data.min():
            return texts
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
        values = load_json(stripped, repairs)
    except (ValueError, RecursionError) as error:
        values = _python_list(stripped)
        if values is None:
            raise ValueError(f"broken JSON list ({error})") from None
        repairs.append(PYTHON_LIST)
    return turns_of(values, repairs), repairs


def load_json(text: str, repairs: list[str]) -> Any:
    """``json.loads`` that keeps numbers in their digits (as ``Number``) and forgives raw line breaks and tabs.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    digits: dict[str, Any] = {"parse_float": Number, "parse_int": Number, "parse_constant": Number}
    try:
        return json.loads(text, **digits)
    except ValueError as error:
        try:
            value = json.loads(text, strict=False, **digits)
        except ValueError:
            raise error from None
        repairs.append(RAW_CONTROL)
        return value


class Number(str):
    """A JSON number, kept in the digits of the file."""

    __slots__ = ()


def _python_list(text: str) -> list[Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in the text
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def turns_of(value: Any, repairs: list[str]) -> list[str | None]:
    """A list of turns, or one text, from a decoded value; what it took is added to ``repairs``.

    Raises:
        ValueError: it holds something other than texts, numbers, booleans and nulls.
    """
    values = value if isinstance(value, list) else [value]
    return [text_of(one, repairs) for one in values] or [None]


def text_of(value: Any, repairs: list[str]) -> str | None:
    """One text from a decoded value; what it took is added to ``repairs``.

    Raises:
        ValueError: it is neither text, number, boolean nor null.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        repairs.append(NOT_TEXT)
        return "true" if value else "false"
    if isinstance(value, Number) and value == "NaN":
        repairs.append(NAN)
        return None
    if isinstance(value, Number | int | float):
        repairs.append(NOT_TEXT)
        return str(value)
    if not isinstance(value, str):
        kind = "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise ValueError(f"{kind} where a text should stand")
    text = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if text != value:
        repairs.append(LONE_SURROGATE)
    if "\0" in text:
        repairs.append(NUL_BYTE)
        text = text.replace("\0", "")
    return text


def _parse_json_lists(cells: pa.Array) -> pa.ListArray | None:
    """All cells in one vectorised pass, or None where any of them is not a clean list of strings and nulls.

    A blank cell counts as ``[null]``.
    """
    if not len(cells):
        return pa.array([], TURNS)
    if (first_bytes(cells) != ord("[")).any():
        cells = pc.if_else(pc.equal(pc.utf8_trim_whitespace(cells), ""), "[null]", cells)
        if pc.any(pc.match_substring_regex(cells, r"^\s*[^\s\[]")).as_py():
            return None
    whole = pa.ListArray.from_arrays(pa.array([0, len(cells)], pa.int32()), cells)
    lines = pc.binary_join_element_wise('{"turns":', pc.binary_join(whole, '}\n{"turns":'), "}\n", "")
    joined = lines.buffers()[2]
    if ESCAPED_NUL.search(joined) or NULL_ROW.search(joined):
        return None
    try:
        table = pa_json.read_json(
            pa.BufferReader(joined),
            read_options=pa_json.ReadOptions(block_size=max(joined.size + 1, 64), use_threads=False),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema([("turns", TURNS)]), unexpected_field_behavior="error"
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    # A cell such as `["a"]}{"turns":["b"]` would make two rows; those, and bare nulls, are told apart one by one.
    chunks = table["turns"].chunks
    turns = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return _never_empty(turns) if len(turns) == len(cells) and not turns.null_count else None


def _never_empty(turns: pa.ListArray) -> pa.ListArray:
    if len(turns) and pc.min(pc.list_value_length(turns)).as_py() == 0:
        return pa.array([row or [None] for row in turns.to_pylist()], TURNS)
    return turns


def _one_turn(texts: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int32()), texts)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))
