"""A GPTQ directory loaded as the sequence classifier that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from arena_distill.models.classifier import hub_errors
from arena_distill.models.exact_head import is_head
from arena_distill.models.gptq_linear import STORED, GptqLinear
from arena_distill.models.safetensors_file import read_checkpoint
from arena_distill.runtime.errors import InputError


def load_gptq(directory: Path, bits: int, dtype: torch.dtype) -> Any:
    """The classifier with its quantized backbone on the CPU; its head stays on the meta device.

    Args:
        directory: what step 7 wrote.
        bits: 8 or 4.
        dtype: of all weights that are not quantized, and so what is computed in.

    Raises:
        InputError: a weight is missing, or is not what a GPTQ file of ours holds.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with hub_errors(str(directory)):
        config = AutoConfig.from_pretrained(directory)
        del config.quantization_config
        with init_empty_weights():  # parameters take no memory; buffers that no file holds are computed
            model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name.rpartition(".")[0] for name in read_checkpoint(directory).tensors if name.endswith(".qweight")}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(directory):
        owner, _, kind = name.rpartition(".")
        if owner in quantized and owner in linears:
            layer = layers.setdefault(owner, {})
            layer[kind] = tensor
            bias = model.get_submodule(owner).bias is not None
            if len(layer) == len(STORED) + bias:
                model.set_submodule(owner, _linear(directory, owner, layer, bits))
                layer.clear()
        elif not is_head(name):
            plain[name] = tensor.to(dtype)
    if unfinished := sorted(name for name, layer in layers.items() if layer):
        raise InputError(f"{directory}: lacks a part of the layer {unfinished[0]} -> quantize the model again")
    model.load_state_dict(plain, strict=False, assign=True)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta and not is_head(name)]
    if missing:
        raise InputError(f"{directory}: its weights lack {missing[0]} -> quantize the model again")
    return model


def _linear(directory: Path, name: str, stored: dict[str, torch.Tensor], bits: int) -> GptqLinear:
    try:
        return GptqLinear.from_stored(stored, bits)
    except ValueError as error:
        raise InputError(f"{directory}: the layer {name} {error} -> quantize the model again") from error


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(read_checkpoint(directory).files):
        try:
            with safe_open(directory / file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                    yield name, weights.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{directory / file}: cannot be read ({error}) -> quantize the model again") from error
