"""Libraries that talk too much: what they print on import and load hides our own lines in a job log."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence progress bars and advice of transformers and its friends; their errors still raise."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # before its import: it logs each CUDA kernel it lacks
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
