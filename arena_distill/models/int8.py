"""Eight-bit weights for what GPTQ does not support, encoders above all: bitsandbytes on a GPU, torchao on a CPU.

Each row of a weight matrix has one scale. What is saved is quantized already, and loads anywhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from arena_distill.models.classifier import hub_errors
from arena_distill.models.exact_head import is_head
from arena_distill.models.head_file import read_head
from arena_distill.models.quantized import AGAIN, BITSANDBYTES, TORCHAO
from arena_distill.runtime.errors import InputError, SettingsError

_PACKAGES = {TORCHAO: "torchao", BITSANDBYTES: "bitsandbytes"}


def quantize_int8(model_dir: Path, out: Path, method: str, device: str) -> None:
    """Write the classifier in ``model_dir`` with 8-bit weights to ``out``; its head stays as it is.

    Args:
        model_dir: a plain sequence classifier.
        out: an existing directory; receives ``config.json`` and the weights.
        method: ``torchao-int8`` or ``bitsandbytes-int8``.
        device: where to quantize.

    Raises:
        InputError: the model cannot be loaded.
        SettingsError: the package is not installed.
    """
    from transformers import AutoModelForSequenceClassification

    _require(method)
    head = read_head(model_dir)
    kept = sorted({name.rpartition(".")[0] for name in head})
    with hub_errors(str(model_dir)):
        model = AutoModelForSequenceClassification.from_pretrained(
            model_dir, dtype="auto", quantization_config=_config(method, kept), device_map={"": device}
        )
    for name, tensor in head.items():  # loading may have rounded it to the type of the body
        model.get_parameter(name).data = tensor.to(device)
    model.save_pretrained(out)


def load_int8(directory: Path, method: str, dtype: torch.dtype, device: str | torch.device) -> Any:
    """The classifier that ``quantize_int8`` wrote, on its device.

    Raises:
        InputError: weights are missing or damaged.
        SettingsError: the package is not installed.
    """
    from transformers import AutoModelForSequenceClassification

    _require(method)
    with hub_errors(str(directory)):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            directory, dtype=dtype, device_map={"": device}, output_loading_info=True
        )
    missing = sorted(name for name in report["missing_keys"] if not is_head(name))
    if missing or report["mismatched_keys"]:
        name = missing[0] if missing else sorted(report["mismatched_keys"])[0]
        raise InputError(f"{directory}: its weights lack {name} -> {AGAIN}")
    for module in model.modules():
        if int8_weight_kind(module) is None:  # bitsandbytes leaves norms in the type that they are stored in
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return model


def int8_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """The weight of a quantized layer as float32 ``[out, in]``; None for any other module."""
    weight: Any = getattr(module, "weight", None)
    kind = int8_weight_kind(module)
    if kind == BITSANDBYTES:
        state: Any = module.state
        integers, scales = (weight.CB, weight.SCB) if weight.CB is not None else (state.CB, state.SCB)
        if integers is None:
            integers = weight.data
        return torch.as_tensor(integers.float() * (scales.float()[:, None] / 127)).cpu()
    return torch.as_tensor(weight.dequantize()).float().cpu() if kind == TORCHAO else None


def int8_weight_kind(module: torch.nn.Module) -> str | None:
    """By which method a layer's weight is quantized, if it is."""
    weight = getattr(module, "weight", None)
    if type(weight).__name__ == "Int8Params":
        return BITSANDBYTES
    return TORCHAO if isinstance(weight, torch.Tensor) and type(weight).__module__.startswith("torchao.") else None


def _require(method: str) -> None:
    if find_spec(_PACKAGES[method]) is None:
        raise SettingsError(f"{method} needs {_PACKAGES[method]} -> pip install 'arena-distill[quantize]'")


def _config(method: str, kept: list[str]) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if method == BITSANDBYTES:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
