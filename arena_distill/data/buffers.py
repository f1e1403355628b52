"""The bytes and offsets under an Arrow string array, as NumPy arrays that share its memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def offsets_of(texts: pa.StringArray) -> np.ndarray:
    """Where each text begins in the array's data buffer, and the last one ends, int32 ``[N + 1]``."""
    if not len(texts):
        return np.zeros(1, np.int32)
    return np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]


def data_of(texts: pa.StringArray) -> np.ndarray:
    """The data buffer that ``offsets_of`` counts in, uint8; a slice has that of the whole array."""
    return np.frombuffer(texts.buffers()[2] or b"", np.uint8)


def bytes_of(texts: pa.StringArray) -> np.ndarray:
    """The bytes of all texts, one after the other, uint8."""
    offsets = offsets_of(texts)
    return data_of(texts)[offsets[0] : offsets[-1]]


def first_bytes(texts: pa.StringArray) -> np.ndarray:
    """First byte of each text, uint8 ``[N]``; 0 where it is empty."""
    offsets = offsets_of(texts)
    first = np.zeros(len(texts), np.uint8)
    filled = offsets[1:] > offsets[:-1]
    first[filled] = data_of(texts)[offsets[:-1][filled]]
    return first


def string_array(offsets: np.ndarray, data: np.ndarray) -> pa.StringArray:
    """Texts without nulls from int32 offsets ``[N + 1]`` and the bytes they count in."""
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
