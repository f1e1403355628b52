"""Finished scores in memory-mapped files: a killed run goes on from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arena_distill.runtime.errors import InputError


@dataclass(frozen=True)
class Parts:
    """The scores so far: one file a shard, float32 ``[S, W]``, not finite where there are none yet.

    What is written survives the process. All parts in a directory are of the same model and settings, so whatever any
    of them holds is done, however many shards there were.
    """

    directory: Path
    shape: tuple[int, int]

    def open(self, shard: int, shards: int) -> np.memmap:
        """The part of one shard, to be written to."""
        path = self.directory / f"shard_{shard}_of_{shards}.npy"
        if self._read(path) is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            try:
                with fresh.open("wb") as file:  # not mapped yet: a full disk shows here, and is no crash
                    np.save(file, np.full(self.shape, np.nan, dtype=np.float32))
            except OSError as error:
                reason = error.strerror or error
                raise InputError(
                    f"{fresh}: cannot be written ({reason}) -> free some space, or choose another place"
                ) from error
            fresh.replace(path)
        return np.lib.format.open_memmap(path, mode="r+")

    def together(self) -> np.ndarray:
        """All parts as one array."""
        whole = np.full(self.shape, np.nan, dtype=np.float32)
        for path in sorted(self.directory.glob("shard_*_of_*.npy")):
            part = self._read(path)
            if part is not None:
                done = np.isfinite(part).all(axis=1)
                whole[done] = part[done]
        return whole

    def forget(self, shard: int, shards: int) -> None:
        """Remove one shard's part; with a single shard, every part."""
        pattern = f"shard_{shard}_of_{shards}.npy" if shards > 1 else "shard_*_of_*.npy"
        for path in self.directory.glob(pattern):
            path.unlink()

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            part = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # absent, or cut off while it was made
            return None
        return part if part.shape == self.shape and part.dtype == np.float32 else None
