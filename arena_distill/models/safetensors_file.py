"""The safetensors format read and written tensor by tensor, so that memory does not grow with the file.

Layout: 8 bytes little-endian length of the header, the header in JSON (name -> dtype, shape, place), the data. Files
are read at offsets and not mapped: what is read and let go leaves the process. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.runtime.errors import InputError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPE_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4},
    **{"U64": 8, "I64": 8, "F64": 8, "C64": 8},
}
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: ``size`` bytes from byte ``start`` of ``file``."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def rows(self) -> int:
        """Length of the first axis; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    def read(self, first: int = 0, last: int | None = None) -> bytearray:
        """The bytes of the rows ``first`` to ``last`` (not included), by default all.

        Raises:
            InputError: the file has become shorter since its header was read.
        """
        row = self.size // self.rows if self.rows else 0
        data = bytearray(((self.rows if last is None else last) - first) * row)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start + first * row)
            _fill(stream, memoryview(data), self.file)
        return data

    def pieces(self) -> Iterator[memoryview]:
        """All bytes in pieces of at most 4 MiB; each piece is overwritten by the next."""
        buffer = memoryview(bytearray(min(self.size, _COPY_BYTES)))
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            for done in range(0, self.size, _COPY_BYTES):
                piece = buffer[: min(_COPY_BYTES, self.size - done)]
                _fill(stream, piece, self.file)
                yield piece


def _fill(stream: Any, buffer: memoryview, file: Path) -> None:
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])
        if not count:
            raise InputError(f"{file}: ends too early -> copy or download it again")
        done += count


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """What a file holds, after checking that all of it is there.

    Returns:
        The tensors by name, in the order of their data, and the file's metadata.

    Raises:
        InputError: the file is no safetensors file, or its length is not what the header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise InputError(f"{file}: damaged or cut short, {size:,} bytes -> copy or download it again")
        text = stream.read(length)
    try:
        header = json.loads(text)
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        tensors = [_entry(file, name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error!r}) -> copy or download it again") from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            raise InputError(f"{file}: damaged header at {tensor.name} -> copy or download it again")
        end += tensor.size
    if end != size:
        raise InputError(f"{file}: {size:,} bytes, its header says {end:,} -> copy or download it again")
    return {tensor.name: tensor for tensor in tensors}, metadata


def _entry(file: Path, name: str, entry: Mapping[str, Any], data: int) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    if entry["dtype"] not in DTYPE_BYTES:
        raise ValueError(f"{name} is of the unknown type {entry['dtype']}")
    if end - begin != math.prod(shape) * DTYPE_BYTES[entry["dtype"]] or min(shape, default=0) < 0:
        raise ValueError(f"the shape of {name} does not fit its place")
    return StoredTensor(file, name, entry["dtype"], shape, data + begin, end - begin)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data of a file of these tensors (name, dtype, shape), which follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight, as the library writes it
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights in one or several files: tensors and metadata by file name, in the order of the data."""

    directory: Path
    files: dict[str, dict[str, StoredTensor]]
    metadata: dict[str, dict[str, str]]
    index: dict[str, Any] | None
    """The index file's content; None for a single file."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {name: tensor for tensors in self.files.values() for name, tensor in tensors.items()}


def read_checkpoint(directory: Path) -> Checkpoint:
    """The weights of a model directory; every file's header is checked against its length.

    Raises:
        InputError: there are none in safetensors format, a file is missing or damaged, or index and files disagree.
    """
    if (directory / SINGLE_FILE).is_file():
        tensors, metadata = read_header(directory / SINGLE_FILE)
        return Checkpoint(directory, {SINGLE_FILE: tensors}, {SINGLE_FILE: metadata}, None)
    index_file = directory / INDEX_FILE
    if not index_file.is_file():
        if any(directory.glob("*.bin")):
            raise InputError(
                f"{directory}: weights in .bin files only -> load the model with transformers and save_pretrained it, "
                "which writes safetensors"
            )
        raise InputError(f"{directory}: no {SINGLE_FILE} and no {INDEX_FILE} -> copy or download the model again")
    try:
        index = json.loads(index_file.read_text("utf-8"))
        places = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index_file}: not an index of weights ({error!r}) -> copy or download it again") from error
    return _indexed_checkpoint(directory, index, places)


def _indexed_checkpoint(directory: Path, index: dict[str, Any], places: dict[str, str]) -> Checkpoint:
    files: dict[str, dict[str, StoredTensor]] = {}
    metadata: dict[str, dict[str, str]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (directory / name).is_file():
            raise InputError(f"{directory / INDEX_FILE}: names {name}, which is missing -> copy or download it again")
        files[name], metadata[name] = read_header(directory / name)
    for tensor, file in places.items():
        if tensor not in files[file]:
            raise InputError(f"{directory / file}: lacks {tensor}, which the index puts there -> download it again")
    if sum(len(tensors) for tensors in files.values()) != len(places):
        raise InputError(f"{directory / INDEX_FILE}: does not list every tensor of its files -> download it again")
    return Checkpoint(directory, files, metadata, index)
