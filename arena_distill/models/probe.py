"""A few token sequences with the logits that a quantized model gave when it was made, compared at every load.

A kernel that computes wrongly, a damaged file or another head gives other answers; nothing else would show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from arena_distill.data.prompts import Sequences
from arena_distill.data.ragged import Ragged
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError

PROBE_FILE = "probe.safetensors"
PROBE_ROWS = 8
PROBE_LENGTH = 128  # tokens: a check at every load has to be cheap
PROBE_BOUND = 0.05  # of a probability; bfloat16 moves them by up to about 0.02
NEAR_TIE = 2 * PROBE_BOUND  # rows with a smaller lead may change their verdict within the bound


class Scorer(Protocol):
    """What a judge does with token sequences."""

    def score(self, sequences: Sequences) -> np.ndarray:
        """Raw logits, float32 ``[S, 3]``."""
        ...


def write_probe(judge: Scorer, sequences: Sequences, directory: Path) -> None:
    """Keep what ``judge`` says of up to eight of the sequences, of all lengths.

    Args:
        judge: the quantized model.
        sequences: real ones, at most 128 tokens long.
        directory: of the model.
    """
    order = np.argsort(sequences.ids.lengths, kind="stable")
    picked = sequences.take(order[np.linspace(0, len(order) - 1, min(PROBE_ROWS, len(order))).round().astype(int)])
    tensors = {
        "tokens": torch.from_numpy(np.asarray(picked.ids.values, np.int32)),
        "lengths": torch.from_numpy(np.asarray(picked.ids.lengths, np.int64)),
        "logits": torch.from_numpy(np.asarray(judge.score(picked), np.float32)),
    }
    if picked.segment_ids is not None:
        tensors["segments"] = torch.from_numpy(np.asarray(picked.segment_ids.values, np.int32))
    write_atomically(directory / PROBE_FILE, save(tensors, metadata={"format": "pt"}))


def check_probe(judge: Scorer, directory: Path) -> float:
    """Compare what ``judge`` says now with what was said when the model was made.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: the answers differ by more than rounding explains, or there is no probe.
    """
    sequences, expected = _read_probe(directory / PROBE_FILE)
    try:
        found = _softmax(judge.score(sequences))
    except InputError as error:
        raise InputError(f"{directory}: fails its probe ({error}) -> quantize the model again") from error
    gap = float(np.abs(found - expected).max())
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > NEAR_TIE
    agree = (found.argmax(axis=1) == expected.argmax(axis=1))[clear].all()
    if not (gap <= PROBE_BOUND and agree):
        raise InputError(
            f"{directory}: answers otherwise than when it was made (a probability differs by {gap:.3f}): another head, "
            "damaged weights, or a kernel that computes wrongly -> quantize the model again, or use float32"
        )
    return gap


def _read_probe(path: Path) -> tuple[Sequences, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: missing, so nothing tells whether the model is whole -> quantize the model again")
    try:
        tensors = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        lengths, logits = tensors["lengths"], tensors["logits"]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        segments = tensors.get("segments")
        if offsets[-1] != len(tensors["tokens"]) or logits.shape != (len(lengths), 3) or not len(lengths):
            raise ValueError("its tensors do not fit together")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: broken ({error}) -> quantize the model again") from error
    ids = Ragged(tensors["tokens"], offsets)
    return Sequences(ids, None if segments is None else Ragged(segments, offsets)), _softmax(logits)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
