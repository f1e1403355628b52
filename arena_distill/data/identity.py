"""What makes two rows, or two prompts, the same: hashes over texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.records import TEXT_COLUMNS, Rows

_NULL_TURN, _TURN, _COLUMN = "\x00", "\x1f", "\x1e"  # control characters keep ["a", "b"] apart from ["ab"]
_ESCAPE = "\x1b"  # goes before any of these that stands in a text
_CONTROL = "\x00\x1b\x1e\x1f"
_WHITE = r"[\s\v\x{85}\p{Z}]+"


def normalise_prompt(texts: pa.Array) -> pa.Array:
    """Unicode NFC, lower case, runs of white space as one space, none at the ends of a turn. string -> string."""
    if not pc.all(pc.string_is_ascii(texts)).as_py():
        texts = pc.utf8_normalize(texts, "NFC")
    texts = pc.utf8_lower(texts)
    # Most prompts need nothing more, and finding those is far cheaper than rewriting all of them.
    odd = pc.match_substring_regex(texts, r"[\t\n\v\f\r\x{85}]|\p{Z}\p{Z}|[^\P{Z} ]|^ | $| \x1f|\x1f ")
    if pc.any(odd).as_py():
        spaced = pc.replace_substring_regex(texts.filter(odd), _WHITE, " ")
        spaced = pc.utf8_trim(pc.replace_substring_regex(spaced, f" ?{_TURN} ?", _TURN), " ")
        texts = pc.replace_with_mask(texts, odd, spaced)
    return texts


def prompt_hashes(prompts: pa.ListArray) -> pa.Array:
    """64-bit hash of each normalised prompt (list<string> turns), uint64 ``[N]``: equal prompts, equal hashes."""
    return pa.array(np.frombuffer(_digests(normalise_prompt(_joined(prompts))), dtype="<u8"))


def row_hashes(texts: Mapping[str, pa.ListArray]) -> pa.Array:
    """16 hex digits over the turns of prompt and both answers, exactly as loaded, string ``[N]``."""
    joined = pc.binary_join_element_wise(*(_joined(texts[name]) for name in TEXT_COLUMNS), _COLUMN)
    digits = _digests(joined).hex().encode()
    offsets = pa.array(np.arange(0, len(digits) + 1, 16, dtype=np.int32))
    return pa.StringArray.from_buffers(len(joined), offsets.buffers()[1], pa.py_buffer(digits))


def rows_sha256(rows: Rows) -> str:
    """One hash for a whole data set: its row hashes in order, whether from CSV, Parquet or JSON lines."""
    whole = hashlib.sha256()
    for chunk in rows["row_hash"].chunks:
        whole.update("".join(chunk.to_pylist()).encode())
    return whole.hexdigest()


def _joined(turns: pa.ListArray) -> pa.Array:
    values = turns.flatten()
    escaped = _escaped(values)
    if values.null_count or escaped is not values:
        offsets = pc.subtract(turns.offsets, turns.offsets[0]).cast(pa.int32())
        turns = pa.ListArray.from_arrays(offsets, pc.fill_null(escaped, _NULL_TURN))
    return pc.binary_join(turns, _TURN)


def _escaped(values: pa.Array) -> pa.Array:
    """``values`` so that no text can pass for two turns; nearly always the same array."""
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)
    if not any((data == ord(control)).any() for control in _CONTROL):
        return values
    return pc.replace_substring_regex(values, f"([{_CONTROL}])".replace("\0", r"\x00"), _ESCAPE + r"\1")


def _digests(texts: pa.Array) -> bytes:
    """8-byte BLAKE2b digests, one after the other; hashlib reads Arrow's buffer in place."""
    if not len(texts):
        return b""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    data = memoryview(texts.buffers()[2] or b"")
    blake2b = hashlib.blake2b
    return b"".join([blake2b(data[start:end], digest_size=8).digest() for start, end in pairwise(offsets)])
