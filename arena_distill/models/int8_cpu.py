"""Encoders whose matrix products are of 8-bit integers, weights and activations both (W8A8), for CPUs with VNNI.

Weights have a scale for each output, what goes into a layer one for the layer, found on some texts beforehand: so a
row's logits do not depend on what stands beside it in a batch. The activation function between the two layers of a
feed-forward block is part of the first product, which hands 8-bit integers on to the second. Attention and the layer
after it, where 8 bits would cost as much time as they save, compute in bfloat16, norms and sums in float32; the
classification head stays as it is. Kernels are oneDNN's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from arena_distill.models.exact_head import is_head

FAMILIES = frozenset(("bert", "distilbert", "roberta", "xlm-roberta"))
"""``model_type`` of the encoders that this knows."""

_MIDDLE = 128  # stands for 0 among unsigned integers
_MARGIN = 1.1  # how far beyond what the texts showed an activation may go before it is cut
_LEAST_GELU = -0.17  # gelu gives nothing smaller
_AFTER_ATTENTION = ("attention.output.dense", "attention.out_lin")
_FEED_FORWARD = (
    ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    ("lin1", "activation", "lin2"),
)


def can_compute_int8(model_type: str | None) -> bool:
    """Whether this machine's CPU, this torch and this architecture are made for it.

    Without VNNI, sums of products of 8-bit integers overflow (oneDNN's documentation), and there is nothing to gain.
    """
    kernels = hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.backends.mkldnn.is_available()
    return model_type in FAMILIES and kernels and torch.cpu._is_vnni_supported()


def to_int8(model: Any, read: Callable[[], Any]) -> int:
    """Replace the linear layers of an encoder's body, in place.

    Args:
        model: ``AutoModelForSequenceClassification`` on the CPU, in float32, in evaluation mode.
        read: has the model read a few texts; what its layers see then is the range of their inputs.

    Returns:
        How many layers were replaced.
    """
    body = model.base_model
    linear = {name: module for name, module in body.named_modules() if _is_of_body(name, module)}
    after = [linear.pop(name) for name in list(linear) if name.endswith(_AFTER_ATTENTION)]
    seen = _Inputs(linear)
    read()
    seen.close()
    for module in after:
        module.to(torch.bfloat16)
    activations = _feed_forward(body, linear)
    for quantizer, names in seen.shared():
        for name in names:
            shared = len(names) > 1  # by attention, which computes in 16 bits
            body.set_submodule(name, Int8Linear(linear[name], quantizer, torch.bfloat16 if shared else torch.float32))
    for first, activation, second in activations:
        scale = (max(seen.largest[second], 0.0) * _MARGIN - _LEAST_GELU) / 255
        inner = Fixed(scale, round(-_LEAST_GELU / scale))
        body.get_submodule(first).activate(inner)
        body.get_submodule(second).quantizer = inner
        body.set_submodule(activation, nn.Identity())
    return len(linear)


class Fixed:
    """How floating-point numbers stand for unsigned 8-bit integers: ``x = scale * (q - zero)``."""

    def __init__(self, scale: float, zero: int) -> None:
        self.scale, self.zero = scale, zero
        self._offset = torch.full((1,), zero + 0.5)  # float32, of one dimension: bfloat16 inputs are widened by it
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` in 8 bits; layers that are given the same tensor one after the other share the result."""
        if x.dtype == torch.uint8:
            return x
        if self._last is None or self._last[0] is not x:
            self._last = x, torch.add(self._offset, x, alpha=1 / self.scale).clamp_(0, 255).to(torch.uint8)
        return self._last[1]


class Int8Linear(nn.Module):
    """A linear layer of 8-bit weights and inputs.

    Args:
        linear: whose weights to round.
        quantizer: of what it is given.
        dtype: of what it gives.
    """

    def __init__(self, linear: nn.Linear, quantizer: Fixed, dtype: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.quantizer, self.dtype, self.out = quantizer, dtype, Fixed(1.0, 0)
        self.activation = "none"

    def activate(self, out: Fixed) -> None:
        """Give gelu of the product from now on, as 8-bit integers."""
        self.dtype, self.out, self.activation = torch.uint8, out, "gelu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[…, in]`` to ``[…, out]``."""
        given, out = self.quantizer, self.out
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(given(x), given.scale, given.zero),
            *(self.packed, self.scales, self.zeros, self.bias),
            *(out.scale, out.zero, self.dtype),
            *(self.activation, [], "none" if self.activation == "gelu" else ""),
        )
        return product


class _Inputs:
    """What linear layers are given while a model reads: how large it is, and which of them are given the same."""

    def __init__(self, linear: dict[str, nn.Linear]) -> None:
        self.largest = dict.fromkeys(linear, 0.0)
        self._with: dict[str, str] = {}
        self._last: tuple[torch.Tensor, str] | None = None
        self._hooks = [module.register_forward_pre_hook(self._look(name)) for name, module in linear.items()]

    def _look(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            (x,) = inputs
            self.largest[name] = max(self.largest[name], float(x.abs().max()))
            if self._last is None or self._last[0] is not x:
                self._last = x, name
            self._with[name] = self._last[1]

        return hook

    def close(self) -> None:
        """Look no longer."""
        for hook in self._hooks:
            hook.remove()
        self._last = None

    def shared(self) -> list[tuple[Fixed, list[str]]]:
        """Layers that are given the same, with the range of it."""
        together: dict[str, list[str]] = {}
        for name, first in self._with.items():
            together.setdefault(first, []).append(name)
        scales = {first: self.largest[first] * _MARGIN / (_MIDDLE - 1) for first in together}
        return [(Fixed(scales[first] or 1.0, _MIDDLE), names) for first, names in together.items()]


def _is_of_body(name: str, module: nn.Module) -> bool:
    return type(module) is nn.Linear and not is_head(name)


def _feed_forward(body: Any, linear: dict[str, nn.Linear]) -> list[tuple[str, str, str]]:
    """First layer, activation and second layer of every feed-forward block whose activation is gelu."""
    found = []
    for names in _FEED_FORWARD:
        for name in linear:
            if name.endswith(f".{names[0]}"):
                first, activation, second = (name.removesuffix(names[0]) + other for other in names)
                exact = type(body.get_submodule(activation)).__name__ == "GELUActivation"
                if exact and second in linear:
                    found.append((first, activation, second))
    return found
