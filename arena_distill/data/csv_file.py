"""CSV files as raw Arrow columns: any delimiter, quotes and line breaks in cells, and every bad record located."""

from __future__ import annotations

import codecs
import csv
import io
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from arena_distill.data import raw
from arena_distill.data.raw import ByteStream, RawFile
from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

MAX_BLOCK_BYTES = 1 << 30  # a single record longer than this is a quote that was never closed
HEADER_BYTES = 1 << 20
DELIMITERS = ",\t;"
RELEASE_SECONDS = 5.0  # at most, for Arrow's threads to let go of a file that is read

BLANK_LINE = "blank line skipped"

_BLANK = " \t\r\n,;"
_BAD_BYTE = "\x04not UTF-8: 0x"
_END = "\x04end of file\x04"  # appended to the file as a line of its own: inside a cell it betrays an unclosed quote


class CsvFile(RawFile):
    """A CSV file whose delimiter is a comma, tab or semicolon: whichever cuts its header into most columns."""

    valid_strings = True

    def __init__(self, path: Path, compressed: bool, summary: LoadSummary) -> None:
        super().__init__(path)
        self.compressed = compressed
        with ByteStream(path, compressed) as stream:
            start = stream.read(HEADER_BYTES)
            if stream.has_byte_order_mark:
                summary.note("a byte-order mark at the start was skipped")
        # A cell that is not UTF-8 is found and named when the rows are read.
        self.delimiter, header = _header(start.decode("utf-8", "replace"), path)
        if self.delimiter != ",":
            summary.note(f"columns are separated by {self.delimiter!r}")
        self._name_columns(header, summary)

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
                    raise _unclosed(self.path, rows_done + 1) from error

    def _batches(self, wanted: list[str], block: int, skip: int, summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """The batches from row ``skip`` on, read in blocks of ``block`` bytes."""
        faults = _InvalidRows(self.path)
        rows_read = 0
        names = [_place(place) for place in range(len(self.header))]
        with ByteStream(self.path, self.compressed) as stream:
            source, handler = _Lines(stream), _Handler(faults)
            held = (weakref.ref(source), weakref.ref(handler))
            reader: pa_csv.CSVStreamingReader | None = None
            try:
                reader = pa_csv.open_csv(
                    pa.PythonFile(source, mode="r"),
                    # One thread: only then do invalid rows know their number, and the reader is as fast as with two.
                    read_options=pa_csv.ReadOptions(
                        block_size=block, use_threads=False, column_names=names, skip_rows_after_names=1
                    ),
                    parse_options=pa_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=handler
                    ),
                    convert_options=pa_csv.ConvertOptions(
                        include_columns=[_place(self.columns[name]) for name in wanted],
                        column_types=dict.fromkeys(names, pa.string()),
                        strings_can_be_null=False,
                        check_utf8=False,  # _Lines did
                    ),
                )
                for batch in reader:
                    faults.refuse()
                    if _holds_end(batch):
                        raise _unclosed(self.path, rows_read + len(batch))
                    start = max(0, skip - rows_read)
                    if start < len(batch):
                        columns = dict(zip(wanted, batch.slice(start).columns, strict=True))
                        if source.has_bad_bytes:
                            self._refuse_bad_bytes(columns, rows_read + start)
                        yield columns
                    rows_read += len(batch)
            except pa.ArrowInvalid as error:
                if "straddling object" in str(error) or "block size" in str(error):
                    raise _RecordLongerThanBlock from error
                faults.refuse()
                raise DataError(
                    f"not readable as CSV ({error})", file=self.path, row=rows_read + 1,
                    hint="write the file again with a CSV library",
                ) from error  # fmt: skip
            finally:
                del reader, source, handler
                _wait_until_released(held)
        faults.refuse()
        if not faults.end_seen:
            raise _unclosed(self.path, max(rows_read, 1))
        summary.repaired(BLANK_LINE, faults.blank)

    def _refuse_bad_bytes(self, columns: dict[str, pa.Array], rows_before: int) -> None:
        for name, column in columns.items():
            place = pc.find_substring(column, _BAD_BYTE)
            if pc.max(place).as_py() < 0:
                continue
            row = pc.index(pc.greater_equal(place, 0), True).as_py()
            byte = column[row].as_py().partition(_BAD_BYTE)[2][:2]
            raise DataError(
                f"not valid UTF-8 (byte 0x{byte} at position {place[row].as_py()} of the cell)",
                file=self.path, row=rows_before + row + 1, column=name, hint="convert the file with `iconv -t UTF-8`",
            )  # fmt: skip


class _RecordLongerThanBlock(Exception):
    pass


class _Lines(io.RawIOBase):
    """A file for Arrow to read: valid UTF-8, no blank lines above the header, and ``_END`` on a line after the last.

    Arrow calls no handler for an invalid row that is not UTF-8, so it never gets to see one.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.started = self.ended = self.has_bad_bytes = False
        self._rest = b""  # of a character that the last block cut
        self._block = bytearray()  # read into again and again: fresh memory costs as much as what is done with it

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.ended:
            return b""
        block = self._next(size).lstrip(b"" if self.started else b"\r\n")
        while not block and not self.ended:
            block = self._next(size).lstrip(b"\r\n")
        self.started = True
        return block + f"\n{_END}\n".encode() if self.ended else block

    def _next(self, size: int) -> bytes:
        """The next block as valid UTF-8, characters whole; a byte that is none stands in it as ``_BAD_BYTE``."""
        if len(self._block) < size:
            self._block = bytearray(size)
        block = memoryview(self._block)[:size]
        block[: len(self._rest)] = self._rest
        block = block[: len(self._rest) + self.stream.read_into(block[len(self._rest) :])]
        self.ended, self._rest = len(block) < size, b""
        cut = 0 if self.ended else _cut_character(block)
        whole = block[: len(block) - cut]
        if _is_utf8(whole):
            self._rest = bytes(block[len(whole) :])
            return bytes(whole)
        decoder = codecs.getincrementaldecoder("utf-8")(_BAD_BYTE)
        text = decoder.decode(block, final=self.ended)
        self.has_bad_bytes |= _BAD_BYTE in text
        self._rest = decoder.getstate()[0]
        return text.encode("utf-8")


def _cut_character(block: memoryview) -> int:
    """Bytes of a character at the end of ``block`` that may go on behind it; 0 to 3."""
    for size in range(1, min(3, len(block)) + 1):
        byte = block[-size]
        if byte >= 0xC0:
            return size if size < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            break
    return 0


def _is_utf8(block: memoryview) -> bool:
    """Arrow tells without building the text, and without the GIL."""
    offsets = pa.py_buffer(np.array([0, len(block)], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _mark_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"{_BAD_BYTE}{byte:02x}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_BAD_BYTE, _mark_bad_bytes)


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
            raise _unclosed(self.path, number)
        raise DataError(
            f"has {row.actual_columns} columns, the header {row.expected_columns}: {row.text[:60]!r}",
            file=self.path, row=number,
            hint="quote texts that hold commas, quotes or line breaks, and double the quotes inside them",
        )  # fmt: skip


class _Handler:
    """What Arrow calls, and holds, in the place of ``_InvalidRows``, which we use on."""

    def __init__(self, faults: _InvalidRows) -> None:
        self.faults = faults

    def __call__(self, row: pa_csv.InvalidRow) -> str:
        return self.faults(row)


def _wait_until_released(held: tuple[weakref.ref[_Lines], weakref.ref[_Handler]]) -> None:
    """A thread of Arrow's that lets go of a Python object while the interpreter shuts down aborts the process."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while any(reference() is not None for reference in held) and time.monotonic() < deadline:
        time.sleep(0.001)


def _holds_end(batch: pa.RecordBatch) -> bool:
    return bool(len(batch)) and any(_END in column[-1].as_py() for column in batch.columns)


def _unclosed(path: Path, row: int) -> DataError:
    problem = "a quote is never closed: it swallows the rest of the file"
    return DataError(problem, file=path, row=row, hint="close the quote, or double quotes inside quoted text")


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
