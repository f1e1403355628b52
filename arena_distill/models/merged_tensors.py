"""The bytes of a merged model's tensors, made in blocks of rows; arithmetic as in PEFT's ``merge_and_unload``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from arena_distill.models.lora_file import LoraAdapter, LoraPair
from arena_distill.models.merge_plan import OutputTensor
from arena_distill.models.safetensors_file import StoredTensor
from arena_distill.runtime.errors import InputError

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1 << 23  # of a tensor that are worked on at a time: 32 MB in float32


def count_zero_modules(adapter: LoraAdapter) -> int:
    """How many modules the adapter leaves as they are: their B factors are zero, as before training.

    Raises:
        InputError: a tensor of the adapter holds NaN or infinity.
    """
    for tensor in (*(pair.a for pair in adapter.pairs.values()), *adapter.replacements.values()):
        _is_zero(tensor)
    return sum(_is_zero(pair.b) for pair in adapter.pairs.values())


def _is_zero(tensor: StoredTensor) -> bool:
    zero = True
    for first, last in _blocks(tensor):
        block = _load(tensor, first, last)
        if not _is_finite(block):
            raise InputError(f"{tensor.file}: {tensor.name} holds NaN or infinity -> train the adapter again")
        zero = zero and not bool(block.any())
    return zero


def output_pieces(tensor: OutputTensor) -> Iterator[memoryview]:
    """The bytes of a tensor as it stands in the output, piece by piece.

    Raises:
        InputError: a value is not finite: the base is damaged, or the type too narrow.
    """
    if tensor.pair is None and tensor.dtype == tensor.source.dtype:
        yield from tensor.source.pieces()
        return
    import torch

    dtype, base_dtype = _torch_dtype(tensor.dtype), _torch_dtype(tensor.base_dtype)
    factors = (_load(tensor.pair.a).float(), _load(tensor.pair.b).float()) if tensor.pair else None
    for first, last in _blocks(tensor.source):
        block = _load(tensor.source, first, last).to(base_dtype)
        if tensor.pair is not None and factors is not None:
            delta = _delta(tensor.pair, *factors, first, last)
            if tensor.pair.embedding:  # PEFT rounds the change of an embedding to the type of the table first
                delta = delta.to(torch.promote_types(base_dtype, dtype))
            block = block.to(torch.promote_types(base_dtype, torch.float32)).add_(delta)
        block = block.to(dtype)
        if not _is_finite(block):
            raise InputError(
                f"{tensor.source.file}: {tensor.name} would not be finite in {tensor.dtype} -> check the base model, "
                "or merge with --dtype bfloat16 or float32"
            )
        yield block.contiguous().view(-1).view(torch.uint8).numpy().data


def _is_finite(block: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes carry both, and are found much faster."""
    return not block.numel() or all(bool(extreme.isfinite()) for extreme in block.aminmax())


def _delta(pair: LoraPair, a: torch.Tensor, b: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Rows ``first`` to ``last`` of the change of the weight, float32 ``[rows, columns]``."""
    product = (b @ a[:, first:last]).T if pair.transposed else b[first:last] @ a
    return product.mul_(pair.scaling)


def _blocks(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(tensor.shape[1:])))
    for first in range(0, tensor.rows, step):
        yield first, min(first + step, tensor.rows)


def _load(tensor: StoredTensor, first: int = 0, last: int | None = None) -> torch.Tensor:
    import torch

    data = tensor.read(first, last)
    dtype = _torch_dtype(tensor.dtype)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    rows = (tensor.rows if last is None else last) - first
    return flat.reshape((rows, *tensor.shape[1:]) if tensor.shape else ())


def _torch_dtype(stored: str) -> torch.dtype:
    import torch

    return {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}[stored]
