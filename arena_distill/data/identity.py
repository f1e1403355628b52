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
_WHITE = r"[\s\v\x{85}\p{Z}]+"


def normalise_prompt(texts: pa.Array) -> pa.Array:
    """Unicode NFC, lower case, runs of white space as one space, none at the ends. string -> string."""
    if not pc.all(pc.string_is_ascii(texts)).as_py():
        texts = pc.utf8_normalize(texts, "NFC")
    texts = pc.utf8_lower(texts)
    # Most prompts need nothing more, and finding those is far cheaper than rewriting all of them.
    odd = pc.match_substring_regex(texts, r"[\t\n\v\f\r\x{85}]|\p{Z}\p{Z}|[^\P{Z} ]|^ | $")
    if pc.any(odd).as_py():
        spaced = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts.filter(odd), _WHITE, " "))
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
    if values.null_count:
        offsets = pc.subtract(turns.offsets, turns.offsets[0]).cast(pa.int32())
        turns = pa.ListArray.from_arrays(offsets, pc.fill_null(values, _NULL_TURN))
    return pc.binary_join(turns, _TURN)


def _digests(texts: pa.Array) -> bytes:
    """8-byte BLAKE2b digests, one after the other; hashlib reads Arrow's buffer in place."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    data = memoryview(texts.buffers()[2] or b"")
    blake2b = hashlib.blake2b
    return b"".join([blake2b(data[start:end], digest_size=8).digest() for start, end in pairwise(offsets)])
