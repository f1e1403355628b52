"""Rows of unequal length in one flat array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GATHER = 1 << 19  # values copied at a time: bounds the memory of the index that copies them


@dataclass(frozen=True)
class Ragged:
    """Row i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [N + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self.values[self.offsets[row] : self.offsets[row + 1]])

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 ``[N]``."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """Some rows, in the order given."""
        lengths = self.lengths[rows]
        return Ragged(gather(self.values, self.offsets[:-1][rows], lengths), _offsets(lengths))

    @classmethod
    def from_rows(cls, rows: list[np.ndarray]) -> Ragged:
        """Concatenate ``rows`` (int arrays)."""
        values = np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)
        return cls(values, _offsets(np.array([len(row) for row in rows], dtype=np.int64)))

    @classmethod
    def from_parts(cls, pool: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Row i is the concatenation of ``pool[starts[i, j] : starts[i, j] + lengths[i, j]]`` over j.

        Args:
            pool: int32 ``[total]``.
            starts: int64 ``[N, P]``.
            lengths: int64 ``[N, P]``.
        """
        return cls(gather(pool, starts.ravel(), lengths.ravel()), _offsets(lengths.sum(axis=1)))


def gather(pool: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Slices of ``pool``, one after the other, without a Python loop over them."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    out = np.empty(total, dtype=pool.dtype)
    shift = starts - (ends - lengths)  # from place in the output to place in the pool
    cuts = np.unique(np.searchsorted(ends, np.arange(_GATHER, total, _GATHER)))
    for first, last in zip([0, *cuts], [*cuts, len(ends)], strict=True):
        start = int(ends[first - 1]) if first else 0
        end = int(ends[last - 1]) if last else 0
        out[start:end] = pool[np.arange(start, end) + np.repeat(shift[first:last], lengths[first:last])]
    return out


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
