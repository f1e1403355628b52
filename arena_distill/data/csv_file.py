"""CSV files as raw Arrow columns: any delimiter, quotes and line breaks in cells, and every bad record located."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from arena_distill.data import raw
from arena_distill.data.raw import ByteStream, RawFile
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

MAX_BLOCK_BYTES = 1 << 30  # a single record longer than this is a quote that was never closed
HEADER_BYTES = 1 << 20
DELIMITERS = ",\t;"

BLANK_LINE = "blank line skipped"

_BLANK = " \t\r\n,;"
_END = "\x04end of file\x04"  # appended to the file as a line of its own: inside a cell it betrays an unclosed quote
_CLOSE_QUOTE = "close the quote, or double quotes inside quoted text"


class CsvFile(RawFile):
    """A CSV file whose delimiter is a comma, tab or semicolon: whichever cuts its header into most columns."""

    def __init__(self, path: Path, compressed: bool, summary: LoadSummary) -> None:
        self.compressed = compressed
        with ByteStream(path, compressed) as stream:
            start = stream.read(HEADER_BYTES)
            if stream.has_byte_order_mark:
                summary.note("a byte-order mark at the start was skipped")
        # A cell that is not UTF-8 is found and named when the rows are read.
        self.delimiter, header = _header(start.decode("utf-8", "replace"), path)
        if self.delimiter != ",":
            summary.note(f"columns are separated by {self.delimiter!r}")
        super().__init__(path, header, summary)

    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """See ``RawFile.batches``."""
        block, rows_done = raw.BLOCK_BYTES, 0
        while True:
            try:
                for batch in self._batches(wanted, block, rows_done, summary):
                    rows_done += len(next(iter(batch.values())))
                    yield batch
                return
            except _RecordLongerThanBlock as error:
                block *= 4
                if block > MAX_BLOCK_BYTES:
                    problem = "a record does not end: a quote is never closed"
                    raise DataError(problem, file=self.path, row=rows_done + 1, hint=_CLOSE_QUOTE) from error

    def _batches(
        self, wanted: list[str], block: int, skip: int, summary: LoadSummary
    ) -> Iterator[dict[str, pa.Array]]:
        """The batches from row ``skip`` on, read in blocks of ``block`` bytes."""
        faults = _InvalidRows(self.path)
        rows_read = 0
        names = [_place(place) for place in range(len(self.header))]
        with ByteStream(self.path, self.compressed) as stream:
            source = _Lines(stream)
            try:
                reader = pa_csv.open_csv(
                    pa.PythonFile(source, mode="r"),
                    # One thread: only then do invalid rows know their number, and the reader is as fast as with two.
                    read_options=pa_csv.ReadOptions(
                        block_size=block, use_threads=False, column_names=names, skip_rows_after_names=1
                    ),
                    parse_options=pa_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=faults
                    ),
                    convert_options=pa_csv.ConvertOptions(
                        include_columns=[_place(self.columns[name]) for name in wanted],
                        column_types=dict.fromkeys(names, pa.binary()),
                        strings_can_be_null=False,
                    ),
                )
                for batch in reader:
                    faults.refuse()
                    start = max(0, skip - rows_read)
                    if start < len(batch):
                        yield {
                            name: raw.valid_utf8(column.slice(start), self.path, name, rows_read + start)
                            for name, column in zip(wanted, batch.columns, strict=True)
                        }
                    rows_read += len(batch)
            except pa.ArrowInvalid as error:
                if source.damage:
                    raise source.damage from error
                if "straddling object" in str(error) or "block size" in str(error):
                    raise _RecordLongerThanBlock from error
                faults.refuse()
                raise DataError(
                    f"not readable as CSV ({error})", file=self.path, row=rows_read + 1,
                    hint="write the file again with a CSV library",
                ) from error  # fmt: skip
        faults.refuse()
        if not faults.end_seen:
            problem = "a quote is never closed: the last row swallows the rest of the file"
            raise DataError(problem, file=self.path, row=max(rows_read, 1), hint=_CLOSE_QUOTE)
        summary.repaired(BLANK_LINE, faults.blank)


class _RecordLongerThanBlock(Exception):
    pass


class _Lines(io.RawIOBase):
    """A file for Arrow to read: blank lines before the header left out, and ``_END`` on a line after the last."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.damage: DataError | None = None  # Arrow would report it as one of its own errors
        self.started = self.ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.ended:
            return b""
        try:
            block = self.stream.read(size)
            while block and not self.started:
                block = block.lstrip(b"\r\n") or self.stream.read(size)
                self.started = not block.startswith((b"\r", b"\n"))
        except DataError as error:
            self.damage = error
            raise OSError(str(error)) from error
        if not block:
            self.ended = True
            return f"\n{_END}\n".encode()
        return block


class _InvalidRows:
    """Takes note of rows with too few or too many cells; blank lines among them are forgiven."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first: tuple[int, pa_csv.InvalidRow] | None = None
        self.blank = 0
        self.end_seen = False

    def __call__(self, row: pa_csv.InvalidRow) -> str:
        if row.text == _END:
            self.end_seen = True
        elif not row.text.strip(_BLANK):
            self.blank += 1
        elif self.first is None:
            self.first = (row.number - 1 - self.blank, row)
        return "skip"

    def refuse(self) -> None:
        """Raise if any row was invalid."""
        if self.first is None:
            return
        number, row = self.first
        if row.text.endswith(_END):
            raise DataError("a quote is never closed", file=self.path, row=number, hint=_CLOSE_QUOTE)
        raise DataError(
            f"has {row.actual_columns} columns, the header {row.expected_columns}: {row.text[:60]!r}",
            file=self.path, row=number,
            hint="quote texts that hold commas, quotes or line breaks, and double the quotes inside them",
        )  # fmt: skip


def _header(text: str, path: Path) -> tuple[str, list[str]]:
    """Delimiter and column names."""
    if not text.strip():
        raise DataError("the file holds only blank lines", file=path, hint="download or write it again")
    headers = {}
    for delimiter in DELIMITERS:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            headers[delimiter] = next(row for row in rows if row)
        except (csv.Error, StopIteration) as error:
            raise DataError(
                f"the header is not readable as CSV ({error})", file=path, hint="its first line must name the columns"
            ) from error
    best = max(headers, key=lambda delimiter: len(headers[delimiter]))
    return best, headers[best]


def _place(place: int) -> str:
    """Name of a column for Arrow, which need not see through the quotes and white space of the real one."""
    return str(place)
