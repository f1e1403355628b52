"""What makes two rows, or two prompts, the same: hashes over texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arena_distill.data.buffers import bytes_of, data_of, offsets_of, string_array
from arena_distill.data.records import TEXT_COLUMNS, Rows

_NULL_TURN, _TURN, _COLUMN = "\x00", "\x1f", "\x1e"  # control characters keep ["a", "b"] apart from ["ab"]
_ESCAPE = "\x1b"  # goes before any of these that stands in a text
_CONTROL = "\x00\x1b\x1e\x1f"
_WHITE = r"[\s\v\x{85}\p{Z}]+"

# First bytes of characters other than U+0000 to U+02FF, U+03C0 to U+047F and U+4000 to U+9FFF, which are always in NFC.
_MAY_NOT_BE_NFC = np.zeros(256, dtype=bool)
_MAY_NOT_BE_NFC[0xCC:] = True
_MAY_NOT_BE_NFC[[0xCF, 0xD0, 0xD1, *range(0xE4, 0xEA)]] = False

_HASH_ROWS = 1024  # joined at a time, so that they are hashed while they are in the processor's cache


def normalise_prompt(texts: pa.Array) -> pa.Array:
    """Unicode NFC, lower case, runs of white space as one space, none at the ends of a turn. string -> string."""
    if not len(texts):
        return texts
    offsets = offsets_of(texts)
    other = _where_not_nfc(data_of(texts)[offsets[0] : offsets[-1]]) + int(offsets[0])
    if len(other):
        mask = np.zeros(len(texts), dtype=bool)
        mask[np.searchsorted(offsets, other, side="right") - 1] = True
        composed = pc.utf8_normalize(texts.filter(pa.array(mask)), "NFC")
        texts = pc.replace_with_mask(texts, pa.array(mask), composed)
    return _single_spaces(_white_as_spaces(pc.utf8_lower(texts)))


def _where_not_nfc(data: np.ndarray) -> np.ndarray:
    """Places in UTF-8 ``data`` of all characters that may not be, or keep their text from being, in NFC; int64.

    Left out are only those that no version of Unicode decomposes, combines or reorders.
    """
    places = np.flatnonzero(_MAY_NOT_BE_NFC[data])
    punctuation = data[places] == 0xE2  # U+2002 to U+20BF are always in NFC
    if punctuation.any():
        second, third = (data[places[punctuation] + step] for step in (1, 2))
        punctuation[punctuation] = ((second == 0x80) & (third >= 0x82)) | (second == 0x81) | (second == 0x82)
    return np.asarray(places[~punctuation])


def _white_as_spaces(texts: pa.Array) -> pa.Array:
    """The same texts with a space for each ASCII white space."""
    data = data_of(texts)
    white = (data >= 0x09) & (data <= 0x0D)
    if not white.any():
        return texts
    return string_array(offsets_of(texts), np.where(white, np.uint8(0x20), data))


def _single_spaces(texts: pa.Array) -> pa.Array:
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
    columns = [_joined(texts[name]) for name in TEXT_COLUMNS]
    count = len(columns[0])
    pieces = [[column[start : start + _HASH_ROWS] for column in columns] for start in range(0, count, _HASH_ROWS)]
    digits = b"".join(_digests(pc.binary_join_element_wise(*piece, _COLUMN)) for piece in pieces).hex().encode()
    return string_array(np.arange(0, len(digits) + 1, 16, dtype=np.int32), np.frombuffer(digits, np.uint8))


def rows_sha256(rows: Rows) -> str:
    """One hash for a whole data set: its row hashes in order, whether from CSV, Parquet or JSON lines."""
    whole = hashlib.sha256()
    for chunk in rows["row_hash"].chunks:
        whole.update(bytes_of(chunk).data)
    return whole.hexdigest()


def _joined(turns: pa.ListArray) -> pa.Array:
    values = turns.flatten()
    escaped = _escaped(values)
    if len(values) == len(turns) and not values.null_count:
        return escaped  # no list of turns is empty, so each has one
    if values.null_count or escaped is not values:
        offsets = pc.subtract(turns.offsets, turns.offsets[0]).cast(pa.int32())
        turns = pa.ListArray.from_arrays(offsets, pc.fill_null(escaped, _NULL_TURN))
    return pc.binary_join(turns, _TURN)


def _escaped(values: pa.Array) -> pa.Array:
    """``values`` so that no text can pass for two turns; nearly always the same array."""
    data = data_of(values)
    low = data[data <= max(map(ord, _CONTROL))]
    if not np.isin(low, [ord(control) for control in _CONTROL]).any():
        return values
    return pc.replace_substring_regex(values, f"([{_CONTROL}])".replace("\0", r"\x00"), _ESCAPE + r"\1")


def _digests(texts: pa.Array) -> bytes:
    """8-byte BLAKE2b digests, one after the other; hashlib reads Arrow's buffer in place."""
    if not len(texts):
        return b""
    offsets = offsets_of(texts).tolist()
    data = memoryview(texts.buffers()[2] or b"")
    fresh, digests = hashlib.blake2b(digest_size=8).copy, []  # a copy costs less than its making
    for start, end in pairwise(offsets):
        digest = fresh()
        digest.update(data[start:end])
        digests.append(digest.digest())
    return b"".join(digests)
