"""The bytes of a merged model's tensors, made in blocks of rows; arithmetic as in PEFT's ``merge_and_unload``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arena_distill.models.lora_file import LoraAdapter, LoraPair
from arena_distill.models.merge_plan import OutputTensor
from arena_distill.models.safetensors_file import StoredTensor
from arena_distill.runtime.errors import InputError

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1 << 21  # of a tensor that are worked on at a time: 8 MB in float32


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
    for first, last in row_blocks(tensor.shape):
        block = finite_tensor(tensor, first, last)
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

    dtype, base_dtype = torch_dtype(tensor.dtype), torch_dtype(tensor.base_dtype)
    factors = (load_tensor(tensor.pair.a).float(), load_tensor(tensor.pair.b).float()) if tensor.pair else None
    for first, last in row_blocks(tensor.source.shape):
        block = load_tensor(tensor.source, first, last).to(base_dtype)
        if tensor.pair is not None and factors is not None:
            delta = delta_rows(tensor.pair, *factors, first, last)
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


def delta_rows(pair: LoraPair, a: torch.Tensor, b: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Rows ``first`` to ``last`` of the change of the weight, ``[rows, columns]`` in the type of the factors."""
    product = (b @ a[:, first:last]).T if pair.transposed else b[first:last] @ a
    return product.mul_(pair.scaling)


def row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each block of a tensor of this shape; a scalar is one row.

    The blocks are of equal size, to within a row: a product of one row left over is added up in another order.
    """
    rows = shape[0] if shape else 1
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    blocks = math.ceil(rows / step)
    for block in range(blocks):
        yield rows * block // blocks, rows * (block + 1) // blocks


def load_tensor(tensor: StoredTensor, first: int = 0, last: int | None = None) -> torch.Tensor:
    """The rows ``first`` to ``last`` (not included) of a stored tensor, by default all, in the type it is stored in."""
    import torch

    data = tensor.read(first, last)
    dtype = torch_dtype(tensor.dtype)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    rows = (tensor.rows if last is None else last) - first
    return flat.reshape((rows, *tensor.shape[1:]) if tensor.shape else ())


def finite_tensor(tensor: StoredTensor, first: int = 0, last: int | None = None) -> torch.Tensor:
    """As ``load_tensor``, of an adapter.

    Raises:
        InputError: a value is NaN or infinite.
    """
    values = load_tensor(tensor, first, last)
    if not _is_finite(values):
        raise InputError(f"{tensor.file}: {tensor.name} holds NaN or infinity -> train the adapter again")
    return values


def torch_dtype(stored: str) -> torch.dtype:
    """PyTorch's type for a safetensors type of floating-point numbers."""
    import torch

    return {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}[stored]
