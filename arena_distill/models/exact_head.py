"""The classification head of a quantized model: the tensors that training left, computed in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from arena_distill.models.classifier import HEAD_MODULES


class ExactLinear(nn.Linear):
    """A linear layer that computes in float32 whatever the model around it does: three logits deserve their digits."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` of any type to float32 ``[..., out]``."""
        with torch.autocast(states.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(states.float(), self.weight.float(), bias)


def is_head(name: str) -> bool:
    """Whether a parameter or module of that name belongs to the classification head."""
    return any(part in HEAD_MODULES for part in name.split("."))


def install_head(model: nn.Module, head: Mapping[str, torch.Tensor], device: str | torch.device = "cpu") -> None:
    """Put the tensors of ``head`` in the place of the model's own, in their own type.

    Args:
        model: a sequence classifier; its head may be on the meta device.
        head: by name in the plain model.
        device: where to.

    Raises:
        ValueError: the model's head has other parameters than these, or of other shapes.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if is_head(name)}
    given = {name: tuple(tensor.shape) for name, tensor in head.items()}
    if wanted != given:
        differing = sorted(wanted.items() ^ given.items())
        raise ValueError(f"the head's tensors do not fit the model: {differing[0][0]} {list(differing[0][1])}")
    for name in sorted({name.rpartition(".")[0] for name in head}):
        module = model.get_submodule(name)
        exact: Any = module
        if isinstance(module, nn.Linear):
            exact = ExactLinear(module.in_features, module.out_features, module.bias is not None, device="meta")
            model.set_submodule(name, exact)
        for kind, _ in list(exact.named_parameters(recurse=False)):
            setattr(exact, kind, nn.Parameter(head[f"{name}.{kind}"].contiguous().to(device), requires_grad=False))
