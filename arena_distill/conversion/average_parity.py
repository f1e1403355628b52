"""Proof that an averaged adapter is the average, and a merged model base and adapter: before either is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arena_distill.data.records import Rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.judge import load_judge
from arena_distill.models.average import AverageError, Method, TensorError, average_error
from arena_distill.models.backbone import local_directory
from arena_distill.models.lora_file import LoraAdapter, read_adapter
from arena_distill.models.merge_plan import OutputTensor, plan_merge
from arena_distill.models.merged_tensors import delta_rows, finite_tensor, load_tensor, row_blocks, torch_dtype
from arena_distill.models.release import release_memory
from arena_distill.models.safetensors_file import StoredTensor, read_checkpoint
from arena_distill.runtime.errors import ArenaError

AVERAGE_BOUND = 1e-5  # of a weight change, relative
WEIGHT_BOUND = {"F64": 1e-5, "F32": 1e-5, "BF16": 1.01 * 2.0**-8, "F16": 2.0**-10}
"""Of a merged weight, relative, by the type that it is stored in: rounding alone is at most 2^-8 in bfloat16, and 2^-11
in float16 but for numbers below 6e-5."""
PROBABILITY_BOUND = {"F64": 1e-5, "F32": 1e-5, "F16": 0.01, "BF16": 0.05}
"""Of a probability, by the narrowest type of a merged weight: those of 16 bits are rounded, base and adapter not."""
PARITY_ROWS = 8


def checked_average(
    directory: Path, adapters: Sequence[LoraAdapter], method: Method, *, cut_back: bool
) -> AverageError:
    """Read an averaged adapter from disk and compare it with what it was made of.

    Args:
        directory: of the average.
        adapters: what it was made of.
        method: how.
        cut_back: it was cut back to a smaller rank: the error is that of the rank, and refuses nothing.

    Raises:
        ArenaError: it is not the average.
    """
    error = average_error(read_adapter(directory), adapters, method)
    largest = max(error.frobenius, error.largest_entry)
    if not cut_back and not largest <= AVERAGE_BOUND:
        raise ArenaError(
            f"{directory}: {error.module} is off the average of the folds by {largest:.3g} of its size, more than "
            f"{AVERAGE_BOUND} -> nothing was published; FORCE=1 makes it again; check the disk, and "
            "that no fold's student is being written"
        )
    return error


@dataclass(frozen=True)
class MergeError:
    """How far a merged model is from base and adapter."""

    weight: float  # relative, the largest of all tensors that the adapter changes
    tensor: str  # that one
    bound: float  # of a weight, as stored
    narrowest: str  # type that a changed tensor is stored in


def checked_weights(base: str, adapter_dir: Path, merged: Path, dtype: str | None) -> MergeError:
    """Read a merged model from disk and compare every tensor with base and adapter, in float64.

    What the adapter does not change must be equal to the last bit, after rounding to the type it is stored in.

    Raises:
        ArenaError: a tensor is missing or is another.
    """
    plan = plan_merge(local_directory(base), read_adapter(adapter_dir), dtype, None)
    found = read_checkpoint(merged).tensors
    worst = MergeError(0.0, "", WEIGHT_BOUND["F32"], "F64")
    for tensors in plan.files.values():
        for expected in tensors:
            stored = found.get(expected.name)
            if stored is None or (stored.shape, stored.dtype) != (expected.source.shape, expected.dtype):
                raise ArenaError(f"{merged}: {expected.name} is missing or of another shape -> nothing was published")
            if expected.pair is None:
                if not _is_equal(stored, expected):
                    raise ArenaError(f"{stored.file}: {expected.name} is not the base's -> nothing was published")
                continue
            error, bound = _error_of_sum(stored, expected), WEIGHT_BOUND[stored.dtype]
            if not error <= bound:
                raise ArenaError(
                    f"{stored.file}: {expected.name} is off base + adapter by {error:.3g} of its size, more than "
                    f"{bound:.3g} -> nothing was published; check the disk"
                )
            narrowest = max(worst.narrowest, stored.dtype, key=PROBABILITY_BOUND.__getitem__)
            if error >= worst.weight:
                worst = MergeError(error, expected.name, bound, narrowest)
            else:
                worst = MergeError(worst.weight, worst.tensor, worst.bound, narrowest)
    return worst


def _is_equal(stored: StoredTensor, expected: OutputTensor) -> bool:
    if stored.dtype == expected.source.dtype:
        return stored.read() == expected.source.read()
    for first, last in row_blocks(stored.shape):
        block = load_tensor(expected.source, first, last).to(torch_dtype(expected.base_dtype))
        if not bool((block.to(torch_dtype(stored.dtype)) == load_tensor(stored, first, last)).all()):
            return False
    return True


def _error_of_sum(stored: StoredTensor, expected: OutputTensor) -> float:
    pair = expected.pair
    assert pair is not None
    error = TensorError(expected.name)
    a, b = finite_tensor(pair.a).double(), finite_tensor(pair.b).double()
    for first, last in row_blocks(stored.shape):
        weight = load_tensor(expected.source, first, last).to(torch_dtype(expected.base_dtype)).double()
        error.add(load_tensor(stored, first, last).double(), weight + delta_rows(pair, a, b, first, last))
    return max(error.frobenius, error.largest_entry)


def checked_gap(base: str, adapter_dir: Path, merged: Path, rows: Rows, max_length: int, narrowest: str) -> float:
    """Let both judge some rows, in float32.

    Args:
        base: model of the adapter.
        adapter_dir: the adapter.
        merged: both as one.
        rows: to judge.
        max_length: tokens.
        narrowest: type that a changed tensor of ``merged`` is stored in.

    Returns:
        Largest difference of a probability.

    Raises:
        ArenaError: it is more than rounding explains.
    """
    one, two = (_probabilities(path, base, rows, max_length) for path in (adapter_dir, merged))
    gap = float(np.abs(one - two).max())
    if not gap <= PROBABILITY_BOUND[narrowest]:
        raise ArenaError(
            f"{merged}: the merged model's probabilities differ from those of base and adapter by up to {gap:.3g}, "
            f"more than {PROBABILITY_BOUND[narrowest]} -> nothing was published; MERGED_DTYPE=float32 rounds nothing"
        )
    return gap


def _probabilities(directory: Path, base: str, rows: Rows, max_length: int) -> np.ndarray:
    # On the CPU: there is room for a model in float32 that the GPU may hold in 16 bits only.
    judge = load_judge(directory, max_length=max_length, batch_rows=1, device="cpu", base=base)
    probabilities = softmax(judge.logits(rows))
    del judge
    release_memory()  # two models do not fit side by side
    return probabilities
