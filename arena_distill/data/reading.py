"""Preference files as streams of raw Arrow columns: CSV, Parquet and JSON lines, plain or gzipped.

This module knows bytes, delimiters and record batches. What the cells mean is for ``cells`` and ``labels``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

BLOCK_BYTES = 16 << 20
MAX_BLOCK_BYTES = 1 << 30  # a single CSV record longer than this is a quote that was never closed
HEADER_BYTES = 1 << 20

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "this is a Git LFS pointer, not the data",
        "fetch the file itself with `git lfs pull`",
    ),
    (b"\xff\xfe", "the file is UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "the file is UTF-16 text", "save it as UTF-8"),
    (b"PK\x03\x04", "this is a zip archive (or a spreadsheet)", "unpack it, or export the sheet as CSV"),
)
_EXPECTED_MAGIC = {"parquet": b"PAR1", "gzip": b"\x1f\x8b"}


@dataclass
class RawFile:
    """A recognised data file: its columns by normalised name, and how to stream them."""

    path: Path
    kind: str  # csv, parquet or jsonl
    compressed: bool
    columns: dict[str, str]  # normalised name -> name in the file; empty for JSON lines, whose keys vary by row
    delimiter: str = ","
    header: list[str] = field(default_factory=list)

    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """Yield the ``wanted`` columns (normalised names) in file order, as many rows at a time as fit one block.

        A wanted column that a JSON line lacks is null there. All yielded arrays of one batch have equal length.

        Raises:
            DataError: a record cannot be parsed; names the file and row.
        """
        if self.kind == "csv":
            yield from _csv_batches(self, wanted, summary)
        elif self.kind == "parquet":
            yield from _parquet_batches(self, wanted)
        else:
            yield from _jsonl_batches(self, wanted, summary)


def open_raw(path: Path, summary: LoadSummary) -> RawFile:
    """Recognise ``path`` and read its column names.

    Raises:
        DataError: it does not exist, is a directory, empty, of an unknown kind, or not what its name says.
    """
    if not path.exists():
        raise DataError("no such file", file=path, hint="check the path")
    if path.is_dir():
        raise DataError("this is a directory", file=path, hint="name the .csv, .parquet or .jsonl file inside it")
    kind, compressed = _kind_of(path)
    try:
        with path.open("rb") as raw:
            start = raw.read(4096)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path, hint="check its permissions") from error
    if not start:
        raise DataError("the file is empty (0 bytes)", file=path, hint="download or write it again")
    _refuse_wrong_content(path, start, kind, compressed)
    file = RawFile(path, kind, compressed, {})
    if kind == "csv":
        _read_csv_header(file, summary)
    elif kind == "parquet":
        file.header = [str(name) for name in _parquet(path).schema_arrow.names]
    else:
        file.header = _first_json_keys(file)
    file.columns = _normalised_columns(file, summary)
    return file


def _kind_of(path: Path) -> tuple[str, bool]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[-2:-1] if compressed else suffixes[-1:]) or [""]
    kinds = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
    kinds |= {".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix[0] not in kinds or (compressed and kinds[suffix[0]] == "parquet"):
        known = ".csv, .tsv, .parquet, .jsonl (the text kinds also with .gz)"
        raise DataError(f"unknown kind of file {path.name!r}", file=path, hint=f"use one of {known}")
    return kinds[suffix[0]], compressed


def _refuse_wrong_content(path: Path, start: bytes, kind: str, compressed: bool) -> None:
    for signature, problem, hint in _SIGNATURES:
        if start.startswith(signature):
            raise DataError(problem, file=path, hint=hint)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DataError(
            "this is a web page (HTML or XML), not data: a download probably ended at an error or login page",
            file=path,
            hint="download the file again",
        )
    expected = "gzip" if compressed else kind
    for magic_kind, magic in _EXPECTED_MAGIC.items():
        if start.startswith(magic) != (magic_kind == expected):
            if magic_kind == expected:
                raise DataError(f"this is not a {expected} file", file=path, hint="write it again, or mend its name")
            raise DataError(f"this is a {magic_kind} file", file=path, hint="give it the extension of its content")


def _normalised_columns(file: RawFile, summary: LoadSummary) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name in file.header:
        key = name.strip().lower()
        if key in columns:
            raise DataError(f"column {key!r} stands twice in the header", file=file.path, hint="remove one of them")
        if key != name:
            summary.note(f"column {name!r} read as {key!r}")
        columns[key] = name
    return columns


# CSV ------------------------------------------------------------------------------------------------------------


def _byte_stream(file: RawFile) -> BinaryIO:
    return gzip.open(file.path, "rb") if file.compressed else file.path.open("rb")  # type: ignore[return-value]


def _read_csv_header(file: RawFile, summary: LoadSummary) -> None:
    try:
        with _byte_stream(file) as stream:
            start = stream.read(HEADER_BYTES)
    except (OSError, EOFError) as error:
        raise DataError(f"broken gzip data ({error})", file=file.path, hint="download it again") from error
    if start.startswith(b"\xef\xbb\xbf"):
        summary.note("a byte-order mark at the start was skipped")
        start = start[3:]
    try:
        text = start.decode("utf-8", "ignore" if len(start) == HEADER_BYTES else "strict")
    except UnicodeDecodeError:
        text = start.decode("utf-8", "replace")  # the row at fault is found and named when the rows are read
    if not text.strip():
        raise DataError("the file holds only blank lines", file=file.path, hint="download or write it again")
    candidates = {}
    for delimiter in (",", "\t", ";"):
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            candidates[delimiter] = next(row for row in reader if row)
        except csv.Error as error:
            raise DataError(f"the header is not readable as CSV ({error})", file=file.path, hint=_REWRITE) from error
    file.delimiter = max(candidates, key=lambda delimiter: len(candidates[delimiter]))
    file.header = candidates[file.delimiter]
    if file.delimiter != ",":
        summary.note(f"columns are separated by {file.delimiter!r}")


def _csv_batches(file: RawFile, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
    block, rows_done = BLOCK_BYTES, 0
    while True:
        try:
            for batch in _csv_reader(file, wanted, block, rows_done, summary):
                rows_done += len(next(iter(batch.values()), ()))
                yield batch
            break
        except _RecordLongerThanBlock as error:
            block *= 4
            if block > MAX_BLOCK_BYTES:
                raise DataError(
                    "a record does not end: a quote is never closed", file=file.path, row=rows_done + 1,
                    hint="close the quote, or double quotes inside quoted text",
                ) from error  # fmt: skip


class _RecordLongerThanBlock(Exception):
    pass


def _csv_reader(
    file: RawFile, wanted: list[str], block: int, skip: int, summary: LoadSummary
) -> Iterator[dict[str, pa.Array]]:
    names = [file.columns[name] for name in wanted]
    ragged: list[pa_csv.InvalidRow] = []
    blank = 0

    def on_invalid_row(row: pa_csv.InvalidRow) -> str:
        nonlocal blank
        if row.text.strip(" \t\r\n,;"):
            ragged.append(row)
        else:
            blank += 1
        return "skip"

    def refuse_ragged(rows_before: int) -> None:
        if ragged:
            first = ragged[0]
            raise DataError(
                f"has {first.actual_columns} columns, the header {first.expected_columns}: {first.text[:60]!r}",
                file=file.path,
                row=_ragged_row_number(file) or rows_before,
                hint="quote texts that hold commas, quotes or line breaks, and double the quotes inside them",
            )

    rows_read, last = 0, {}
    try:
        # The column names come from our own reading of the header; pyarrow's would not see through its white space.
        reader = pa_csv.open_csv(
            pa.input_stream(str(file.path), compression="gzip" if file.compressed else None),
            read_options=pa_csv.ReadOptions(block_size=block),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter, newlines_in_values=True, invalid_row_handler=on_invalid_row
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.binary() for name in names},
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            refuse_ragged(rows_read + len(batch) + 1)
            start = max(0, skip - rows_read)
            rows_read += len(batch)
            if start < len(batch):
                columns = {
                    name: _as_text(column.slice(start), file, name, rows_read - len(batch) + start)
                    for name, column in zip(wanted, batch.columns, strict=True)
                }
                last = columns
                yield columns
        refuse_ragged(rows_read + 1)
    except pa.ArrowInvalid as error:
        if "straddling object" in str(error) or "block size" in str(error):
            raise _RecordLongerThanBlock from error
        refuse_ragged(rows_read + 1)
        raise DataError(f"not readable as CSV ({error})", file=file.path, row=rows_read + 1, hint=_REWRITE) from error
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read to its end ({error})", file=file.path, hint="download it again") from error
    if blank:
        summary.repaired("blank line skipped", blank)
    if last and any(b"\n" in column[-1].as_py().encode() for column in last.values()) and _odd_quotes(file):
        raise DataError(
            "a quote is never closed: the last row swallows the rest of the file", file=file.path, row=rows_read,
            hint="close the quote, or double quotes inside quoted text",
        )  # fmt: skip


_REWRITE = "write the file again with a CSV library"


def _ragged_row_number(file: RawFile) -> int | None:
    """The data row of the first ragged record, by a second, single-threaded reading: only that one counts rows."""
    found: list[int] = []

    def note(row: pa_csv.InvalidRow) -> str:
        if row.text.strip(" \t\r\n,;"):
            found.append(row.number - 1)
            return "error"
        return "skip"

    with suppress(pa.ArrowInvalid, OSError):
        pa_csv.read_csv(
            str(file.path),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=MAX_BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
        )
    return found[0] if found else None


def _odd_quotes(file: RawFile) -> bool:
    with _byte_stream(file) as stream:
        count = 0
        while block := stream.read(BLOCK_BYTES):
            count += block.count(b'"')
    return count % 2 == 1


def _as_text(column: pa.Array, file: RawFile, name: str, rows_before: int) -> pa.Array:
    """Binary cells as UTF-8 strings, the first undecodable one refused by row and column."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        for row, cell in enumerate(column.to_pylist(), start=rows_before + 1):
            try:
                cell.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not valid UTF-8 (byte 0x{cell[error.start]:02x} at position {error.start} of the cell)",
                    file=file.path, row=row, column=name, hint="convert the file with `iconv -t UTF-8`",
                ) from error  # fmt: skip
        raise


# Parquet --------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"damaged Parquet file ({error})", file=path, hint="download or write it again") from error


def _parquet_batches(file: RawFile, wanted: list[str]) -> Iterator[dict[str, pa.Array]]:
    names = [file.columns[name] for name in wanted]
    try:
        for batch in _parquet(file.path).iter_batches(batch_size=16384, columns=names):
            yield {
                name: batch.column(batch.schema.get_field_index(raw)) for name, raw in zip(wanted, names, strict=True)
            }
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"damaged Parquet file ({error})", file=file.path, hint="download or write it again") from error


# JSON lines -----------------------------------------------------------------------------------------------------


def _line_blocks(file: RawFile) -> Iterator[bytes]:
    """Blocks of whole lines."""
    rest = b""
    try:
        with _byte_stream(file) as stream:
            while block := stream.read(BLOCK_BYTES):
                cut = block.rfind(b"\n") + 1
                if not cut:
                    rest += block
                    continue
                yield rest + block[:cut]
                rest = block[cut:]
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read to its end ({error})", file=file.path, hint="download it again") from error
    if rest:
        yield rest + b"\n"


def _first_json_keys(file: RawFile) -> list[str]:
    for block in _line_blocks(file):
        for line in block.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if line.strip():
                return list(_json_object(line, file.path, row=1))
    raise DataError("the file holds only blank lines", file=file.path, hint="download or write it again")


def _json_object(line: bytes, path: Path, row: int) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError("not valid UTF-8", file=path, row=row, hint="convert it with `iconv -t UTF-8`") from error
    except ValueError as error:
        hint = "each line must hold one JSON object; a JSON array goes through `jq -c '.[]'` first"
        raise DataError(f"not a JSON object ({error})", file=path, row=row, hint=hint) from error
    if not isinstance(value, dict):
        raise DataError(
            f"holds a JSON {type(value).__name__}, not an object", file=path, row=row, hint="one {...} a line"
        )
    return value


def _jsonl_batches(file: RawFile, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
    rows_done = 0
    names = [file.columns.get(name, name) for name in wanted]
    for index, block in enumerate(_line_blocks(file)):
        if index == 0 and block.startswith(b"\xef\xbb\xbf"):
            summary.note("a byte-order mark at the start was skipped")
            block = block[3:]
        try:
            table = pa_json.read_json(
                pa.BufferReader(block), read_options=pa_json.ReadOptions(block_size=max(len(block) + 1, 64))
            ).combine_chunks()
            if len(table) != block.count(b"\n") - _blank_lines(block):
                raise pa.ArrowInvalid("several objects on a line")
            columns = {
                name: table[raw].chunk(0) if raw in table.column_names else pa.nulls(len(table))
                for name, raw in zip(wanted, names, strict=True)
            }
        except (pa.ArrowInvalid, UnicodeDecodeError):
            # pyarrow says neither which line nor takes a column whose type varies by row
            lines = [line for line in block.split(b"\n") if line.strip()]
            objects = [_json_object(line, file.path, rows_done + n) for n, line in enumerate(lines, start=1)]
            columns = {
                name: pa.array([_as_cell(row.get(raw), summary) for row in objects], pa.string())
                for name, raw in zip(wanted, names, strict=True)
            }
        rows_done += len(next(iter(columns.values()), ()))
        yield columns


def _blank_lines(block: bytes) -> int:
    return sum(not line.strip() for line in block.split(b"\n")[:-1]) if b"\n\n" in block or b"\r\n\r\n" in block else 0


def _as_cell(value: object, summary: LoadSummary) -> str | None:
    """A JSON value as the text that a CSV cell would hold; lists stay JSON, so ``cells`` reads both alike."""
    if value is None:
        return None
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=True)
    text = without_surrogates(value)
    summary.repaired(LONE_SURROGATE, text != value)
    return text


LONE_SURROGATE = "half of a surrogate pair replaced by U+FFFD"


def without_surrogates(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
