"""The libraries that models are loaded and trained with: imported quickly, and kept from talking.

What they print on import and load hides our own lines in a job log. And they are made of half a million objects that
stay until the process ends: while it imports them, and once more when it ends, Python would look through all of them
for garbage, which takes as long as the imports themselves.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Literal

_MODULES = {"tokens": "transformers.utils", "models": "transformers.modeling_utils", "training": "transformers.trainer"}


def quiet_libraries(use: Literal["tokens", "models", "training"] = "models") -> None:
    """Import transformers and its friends, and silence their progress bars and advice; their errors still raise.

    Args:
        use: what comes next: tokenizers alone, models, or the Trainer, which brings PEFT and Accelerate.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # before its import: it logs each CUDA kernel it lacks
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with _no_garbage_collection(_MODULES[use]):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        import_module(_MODULES[use])


@contextmanager
def _no_garbage_collection(module: str) -> Iterator[None]:
    """Import ``module`` inside: what is there afterwards will not be looked through for garbage again."""
    if module in sys.modules or not gc.isenabled():
        yield
        return
    models = _MODULES["models"] in sys.modules  # then some may be alive, whose turn as garbage is to come
    if not models:
        gc.collect()  # what is garbage now would stay for good
    gc.disable()
    try:
        yield
        if not models:
            gc.freeze()
    finally:
        gc.enable()
