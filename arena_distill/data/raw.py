"""What every kind of data file has in common: named columns, streamed as raw Arrow arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from arena_distill.data.summary import LoadSummary
from arena_distill.runtime.errors import DataError

BLOCK_BYTES = 16 << 20
"""How much of a file is in memory at a time, roughly; a longer record is read all the same."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RawFile(ABC):
    """A recognised data file: its columns by normalised name, and how to stream them.

    Args:
        path: the file.
        header: column names as the file has them.
        summary: told of names that were changed.

    Raises:
        DataError: two columns have the same normalised name.
    """

    def __init__(self, path: Path, header: list[str], summary: LoadSummary) -> None:
        self.path = path
        self.header = header
        self.columns: dict[str, int] = {}  # normalised name -> place in the header
        for place, name in enumerate(header):
            key = name.strip().lower()
            if not key:
                continue  # nobody asks for a column without a name
            if key in self.columns:
                raise DataError(f"column {key!r} stands twice in the header", file=path, hint="remove one of them")
            if key != name:
                summary.note(f"column {name!r} read as {key!r}")
            self.columns[key] = place

    @abstractmethod
    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """Yield the ``wanted`` columns (normalised names) in file order, as many rows at a time as fit one block.

        A key that a JSON line lacks is null there. All arrays of one batch have equal length.

        Raises:
            DataError: a record cannot be read; names the file and, where it is known, the row.
        """


class ByteStream:
    """The bytes of a plain or gzipped file, without a byte-order mark; any damage is a ``DataError``."""

    def __init__(self, path: Path, compressed: bool) -> None:
        self.path = path
        with self._located():
            self._source = pa.input_stream(str(path), compression="gzip" if compressed else None)
            start = self._read_fully(len(BYTE_ORDER_MARK))
        self.has_byte_order_mark = start == BYTE_ORDER_MARK
        self._pending = b"" if self.has_byte_order_mark else start

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        with self._located():
            pending, self._pending = self._pending[:size], self._pending[size:]
            return pending + self._read_fully(size - len(pending))

    def _read_fully(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self._source.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _located(self) -> _Damage:
        return _Damage(self.path, "cannot be read to its end")


class _Damage:
    """Turns whatever Arrow raises over damaged bytes into a ``DataError``."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | EOFError | UnicodeDecodeError):
            raise DataError(
                f"{self.problem} ({error})", file=self.path, hint="the file is damaged: download or write it again"
            ) from error


def damage(path: Path, problem: str) -> _Damage:
    """A context in which an error of Arrow or of the file system is a ``DataError`` that says ``problem``."""
    return _Damage(path, problem)


def as_strings(column: pa.Array, file: Path, name: str, rows_before: int) -> pa.Array:
    """A column of texts, numbers, booleans or dates as string, nulls kept.

    Raises:
        DataError: bytes that are not UTF-8 (names the row), or a nested type.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
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
