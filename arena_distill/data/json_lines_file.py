"""JSON-lines files as raw Arrow columns; a line that Arrow cannot take is read, or refused by number, in Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from arena_distill.data import raw
from arena_distill.data.cells import NULL_ROW, TURNS, Number, load_json, text_of, turns_of
from arena_distill.data.raw import ByteStream, RawFile
from arena_distill.data.records import TEXT_COLUMNS
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

SAMPLE_LINES = 1000  # that tell the names and types of the columns

_ONE_A_LINE = "each line must hold one JSON object; a JSON array goes through `jq -c '.[]'` first"


class JsonLinesFile(RawFile):
    """A file with one JSON object a line. Its columns are the keys of its first lines; a key may be missing."""

    valid_strings = True

    def __init__(self, path: Path, compressed: bool, summary: LoadSummary) -> None:
        super().__init__(path)
        self.compressed = compressed
        with ByteStream(path, compressed) as stream:
            if stream.has_byte_order_mark:
                summary.note("a byte-order mark at the start was skipped")
        sample = self._objects(next(self._blocks(), b""), 0, LoadSummary(""), SAMPLE_LINES)
        if not sample:
            raise DataError("the file holds only blank lines", file=path, hint="download or write it again")
        self._name_columns(list(dict.fromkeys(key for row in sample for key in row)), summary)
        self._types = {key: _arrow_type(key, [row.get(key) for row in sample]) for key in self.header}

    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """See ``RawFile.batches``."""
        keys = {name: self.header[self.columns[name]] for name in wanted}
        rows_done = 0
        for block in self._blocks():
            columns = self._by_arrow(block, keys)
            if columns is None:
                objects = self._objects(block, rows_done, summary)
                columns = {
                    name: self._column([row.get(key) for row in objects], name, rows_done, summary)
                    for name, key in keys.items()
                }
            if count := len(next(iter(columns.values()))):
                rows_done += count
                yield columns

    def _blocks(self) -> Iterator[bytes]:
        """Blocks of whole lines; the last ends with a line break too."""
        with ByteStream(self.path, self.compressed) as stream:
            parts: list[bytes] = []
            while block := stream.read(raw.BLOCK_BYTES):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield b"".join([*parts, block[:cut]])
                    parts = []
                parts.append(block[cut:])
        if rest := b"".join(parts):
            yield rest + b"\n"

    def _by_arrow(self, block: bytes, keys: dict[str, str]) -> dict[str, pa.Array] | None:
        """The columns of a block in one vectorised pass, or None where any line is not as plain as the first ones."""
        types = [(key, self._types[key]) for key in keys.values()]
        lines = block.count(b"\n")
        if any(kind is None for _, kind in types) or lines != block.count(b"\n{") + block.startswith(b"{"):
            return None
        if NULL_ROW.search(block):
            return None
        # With the types given, Arrow neither takes texts for dates nor builds what stands in other columns.
        options = pa_json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")
        try:
            table = pa_json.read_json(
                pa.BufferReader(block),
                read_options=pa_json.ReadOptions(block_size=max(len(block) + 1, 64), use_threads=False),
                parse_options=options,
            )
            table.validate(full=True)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        if len(table) != lines:
            return None  # several objects on a line, or one over several lines
        return {name: table[key].combine_chunks() for name, key in keys.items()}

    def _objects(
        self, block: bytes, rows_before: int, summary: LoadSummary, limit: int | None = None
    ) -> list[dict[str, Any]]:
        lines = [line for line in block.split(b"\n") if line.strip()][:limit]
        return [self._object(line, row, summary) for row, line in enumerate(lines, start=rows_before + 1)]

    def _object(self, line: bytes, row: int, summary: LoadSummary) -> dict[str, Any]:
        repairs: list[str] = []
        try:
            value = load_json(line.decode("utf-8"), repairs)
        except UnicodeDecodeError as error:
            problem = f"not valid UTF-8 (byte 0x{line[error.start]:02x} at position {error.start} of the line)"
            raise DataError(problem, file=self.path, row=row, hint="convert it with `iconv -t UTF-8`") from error
        except (ValueError, RecursionError) as error:
            problem = f"not a JSON object ({error}): {line[:60].decode('utf-8', 'replace')!r}"
            raise DataError(problem, file=self.path, row=row, hint=_ONE_A_LINE) from error
        if not isinstance(value, dict):
            kind = "list" if isinstance(value, list) else "single value"
            raise DataError(f"holds a JSON {kind}, not an object", file=self.path, row=row, hint=_ONE_A_LINE)
        for repair in repairs:
            summary.repaired(repair, 1)
        return value

    def _column(self, values: list[Any], name: str, rows_before: int, summary: LoadSummary) -> pa.Array:
        """JSON values as strings, or as lists of turns in a text column that holds lists."""
        is_text = name in TEXT_COLUMNS
        lists = is_text and any(isinstance(value, list | dict) for value in values)
        cells: list[Any] = []
        for row, value in enumerate(values, start=rows_before + 1):
            repairs: list[str] = []
            try:
                if isinstance(value, Number) and not is_text:
                    cells.append(str(value))
                else:
                    cells.append(turns_of(value, repairs) if lists else text_of(value, repairs))
            except ValueError as error:
                hint = "write a text, or a list with one text per turn" if is_text else "write one text or number"
                raise DataError(str(error), file=self.path, row=row, column=name, hint=hint) from error
            if is_text:
                for repair in repairs:
                    summary.repaired(repair, 1)
        return pa.array(cells, TURNS if lists else pa.string())


def _arrow_type(key: str, values: list[Any]) -> pa.DataType | None:
    """The one type of a column's first values; None where they differ, or where Arrow would change their spelling."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {Number}:
        spelled = key.strip().lower() in ("id", *TEXT_COLUMNS)
        return None if spelled else pa.float64()
    if len(kinds) > 1:
        return None
    return {str: pa.string(), list: TURNS, bool: pa.bool_(), dict: None}[kinds.pop() if kinds else str]
