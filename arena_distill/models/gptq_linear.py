"""A linear layer with GPTQ weights that computes in any floating point type, on a CPU as on a GPU.

GPTQModel's own kernels refuse float32, round the scales to bfloat16 on a CPU, and compile for seconds at the first
call. Here the integers stay integers in memory and become floating point when the layer runs: with the thousands of
tokens that a batch of this project holds, that is a few percent of the matrix product that follows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

STORED = ("qweight", "qzeros", "scales", "g_idx")
"""A layer's tensors in a GPTQ file, version 1; its bias stands beside them."""


class GptqLinear(nn.Module):
    """``x @ weight.T + bias`` with a weight of 8 or 4 bits, symmetric, one scale for each group of input features.

    Buffers: ``values``, int8 ``[out, in]`` (8 bits) or uint8 ``[out, in / 2]`` (4 bits, the even one below), and
    ``scales``, float32 ``[out, groups]``.
    """

    values: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.out_features, self.in_features = values.shape[0], values.shape[1] * 8 // bits
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def from_stored(cls, stored: Mapping[str, torch.Tensor], bits: int) -> GptqLinear:
        """The layer out of a file's tensors.

        Args:
            stored: ``qweight`` int32 ``[in * bits / 32, out]``, ``qzeros`` int32 ``[groups, out * bits / 32]``,
                ``scales`` ``[groups, out]``, ``g_idx`` int32 ``[in]``, and maybe ``bias`` ``[out]``.
            bits: 8 or 4.

        Raises:
            ValueError: a tensor is missing or of a wrong type or shape; the layer is not symmetric; its input
                features are not in the order of their groups.
        """
        if missing := [name for name in STORED if name not in stored]:
            raise ValueError(f"has no {', '.join(missing)}")
        qweight, qzeros, scales, g_idx = (stored[name] for name in STORED)
        packed = 32 // bits
        inputs, outputs, groups = len(g_idx), qweight.shape[-1], len(scales)
        shapes = (tuple(qweight.shape), tuple(qzeros.shape), tuple(scales.shape))
        if shapes != ((inputs // packed, outputs), (groups, outputs // packed), (groups, outputs)) or inputs % groups:
            raise ValueError(f"has tensors of shapes {shapes} for {inputs} input features, which do not fit together")
        if {qweight.dtype, qzeros.dtype} != {torch.int32} or not scales.is_floating_point():
            raise ValueError("has tensors of other types than a GPTQ file")
        if not torch.equal(g_idx.long(), torch.arange(inputs) // (inputs // groups)):
            raise ValueError("has its input features in another order than that of their groups (desc_act)")
        # Version 1 of the format stores a zero point less one; that of a symmetric layer is the middle of the range.
        middle = 2 ** (bits - 1)
        if not (_unpack(qzeros.T, bits) == middle - 1).all():
            raise ValueError("has zero points that are not those of a symmetric layer in the format's version 1")
        unpacked = _unpack(qweight, bits).T
        if bits == 8:
            values = (unpacked - middle).to(torch.int8)
        else:
            values = (unpacked[:, 0::2] | unpacked[:, 1::2] << 4).to(torch.uint8)
        return cls(values.contiguous(), scales.T.float().contiguous(), stored.get("bias"), bits)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight, ``[out, in]``; products are made in float32 and rounded once."""
        values = self.values
        if self.bits == 4:
            values = (torch.stack([values & 15, values >> 4], dim=-1).view(torch.int8) - 8).flatten(1)
        grouped = values.view(*self.scales.shape, -1) * self.scales.unsqueeze(-1)
        return grouped.view(values.shape).to(dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``, in the type of ``states`` or of autocast."""
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(states.to(dtype), self.dequantized(dtype), bias)

    def extra_repr(self) -> str:
        """What stands between the parentheses when the model is printed."""
        groups = self.scales.shape[1]
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, groups={groups}"


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values out of int32 ``[rows, columns]``, lowest bits first; int32 ``[rows * 32 / bits, columns]``."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)[None, :, None]
    values = torch.bitwise_right_shift(packed[:, None, :], shifts) & (2**bits - 1)
    return values.flatten(0, 1)
