"""What every kind of data file has in common: named columns, streamed as raw Arrow arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

BLOCK_BYTES = 16 << 20
"""How much of a file is in memory at a time, roughly; a longer record is read all the same."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RawFile(ABC):
    """A recognised data file: its columns by normalised name, and how to stream them."""

    valid_strings = False
    """Whether every ``string`` array of a batch is known to be valid UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: list[str] = []  # column names as the file has them
        self.columns: dict[str, int] = {}  # normalised name -> place in the header

    def _name_columns(self, header: list[str], summary: LoadSummary) -> None:
        """Fill ``header`` and ``columns``.

        Raises:
            DataError: two columns have the same normalised name.
        """
        self.header = header
        for place, name in enumerate(header):
            key = name.strip().lower()
            if not key:
                continue  # nobody asks for a column without a name
            if key in self.columns:
                raise DataError(f"column {key!r} stands twice in the header", file=self.path, hint="remove one of them")
            if key != name:
                summary.note(f"column {name!r} read as {key!r}")
            self.columns[key] = place

    @abstractmethod
    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """Yield the ``wanted`` columns (normalised names) in file order, as many rows at a time as fit one block.

        A key that a JSON line lacks is null there. A batch has at least one row, and all its arrays have equal length.

        Raises:
            DataError: a record cannot be read; names the file and, where it is known, the row.
        """


class ByteStream:
    """The bytes of a plain or gzipped file, without a byte-order mark; any damage is a ``DataError``."""

    def __init__(self, path: Path, compressed: bool) -> None:
        self.path = path
        with damage(self.path, "cannot be read to its end"):
            self._source = pa.input_stream(str(path), compression="gzip" if compressed else None)
            first = bytearray(len(BYTE_ORDER_MARK))
            start = bytes(first[: self._fill(memoryview(first))])
        self.has_byte_order_mark = start == BYTE_ORDER_MARK
        self._pending = b"" if self.has_byte_order_mark else start

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        block = bytearray(size)
        return bytes(memoryview(block)[: self.read_into(memoryview(block))])

    def read_into(self, block: memoryview) -> int:
        """Fill ``block``; how many bytes there were, fewer than it holds only at the end."""
        with damage(self.path, "cannot be read to its end"):
            pending = self._pending[: len(block)]
            self._pending = self._pending[len(pending) :]
            block[: len(pending)] = pending
            return len(pending) + self._fill(block[len(pending) :])

    def _fill(self, block: memoryview) -> int:
        # Into memory of our own: Arrow leaks what it sets aside for a read that fails.
        filled = 0
        while filled < len(block) and (count := self._source.readinto(block[filled:])):
            filled += count
        return filled


@contextmanager
def damage(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever Arrow or the file system raises over damaged bytes into a ``DataError`` that says ``problem``."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        hint = "the file is damaged: download or write it again"
        raise DataError(f"{problem} ({error})", file=path, hint=hint) from error


def as_strings(column: pa.Array, file: Path, name: str, rows_before: int) -> pa.Array:
    """A column of texts, numbers, booleans or dates as string, nulls kept.

    Raises:
        DataError: bytes that are not UTF-8 (names the row), or a nested type.
    """
    if is_text(column.type):
        return valid_utf8(column, file, name, rows_before)
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"holds {column.type}, not single values", file=file, column=name, hint="write one text or number a row"
        ) from error


def valid_utf8(column: pa.Array, file: Path, name: str, rows_before: int) -> pa.Array:
    """A column of any string or binary type as valid UTF-8 strings; ``rows_before`` rows stand before its first.

    Raises:
        DataError: names the first row that is not UTF-8.
    """
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        for row, cell in enumerate(raw.to_pylist(), start=rows_before + 1):
            try:
                (cell or b"").decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not valid UTF-8 (byte 0x{cell[error.start]:02x} at position {error.start} of the cell)",
                    file=file, row=row, column=name, hint="convert the file with `iconv -t UTF-8`",
                ) from error  # fmt: skip
        raise


def is_text(kind: Any) -> bool:
    """Whether an Arrow type holds single texts, decoded or not."""
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )  # fmt: skip
