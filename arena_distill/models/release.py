"""Giving back the memory of a model that is done with."""

from __future__ import annotations

import gc
import sys


def release_memory() -> None:
    """Collect what nothing points to any more, and return the GPU's share of it to other uses.

    A Trainer and its model point at each other, so that nothing of them goes by itself.
    """
    gc.collect()
    torch = sys.modules.get("torch")  # who has not loaded it has nothing there
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
