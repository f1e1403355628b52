"""Quantized students: telling them from others, and loading them with the very head that training left.

Imports no torch by itself: whether a directory is quantized is also asked where nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arena_distill.runtime.artifacts import read_manifest
from arena_distill.runtime.errors import InputError

if TYPE_CHECKING:
    import torch

QUANTIZATION_FILE = "quantization_config.json"
GPTQ, TORCHAO, BITSANDBYTES = "gptq", "torchao-int8", "bitsandbytes-int8"
METHODS = (GPTQ, TORCHAO, BITSANDBYTES)
AGAIN = "quantize the model again (step7_quantize_gptq.sh)"


def is_quantized(directory: Path) -> bool:
    """Whether a quantized model is there, or what is left of one."""
    if (directory / QUANTIZATION_FILE).is_file():
        return True
    try:
        return "quantization_config" in json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_quantization(directory: Path) -> dict[str, Any]:
    """What ``quantization_config.json`` says: ``method``, ``bits``, ``head_sha256`` and more.

    Raises:
        InputError: it is missing, broken, or names a method that is not ours.
    """
    path = directory / QUANTIZATION_FILE
    try:
        document = json.loads(path.read_text("utf-8"))
        method, _, _ = document["method"], int(document["bits"]), str(document["head_sha256"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing, so the quantized model cannot be loaded -> {AGAIN}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: broken ({error!r}) -> {AGAIN}") from error
    if method not in METHODS:
        raise InputError(f"{path}: unknown method {method!r} -> {AGAIN}")
    return dict(document)


def load_quantized(
    directory: Path, tokenizer: Any, *, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> torch.nn.Module:
    """The classifier that step 7 left in ``directory``: quantized backbone, and the head bit for bit.

    Args:
        directory: with ``quantization_config.json``.
        tokenizer: from the same directory.
        dtype: what the backbone computes in; the head computes in float32.
        device: where to.

    Returns:
        A model whose ``forward(**inputs).logits`` are float32 ``[B, 3]``.

    Raises:
        InputError: weights or head are missing, damaged or of another model.
        SettingsError: a package that the method needs is not installed.
    """
    from arena_distill.models.classifier import check_vocabulary
    from arena_distill.models.exact_head import install_head

    quantization = read_quantization(directory)
    head = _own_head(directory, quantization)
    if quantization["method"] == GPTQ:
        from arena_distill.models.gptq_file import load_gptq

        model = load_gptq(directory, int(quantization["bits"]), dtype)
        on_device = False
    else:
        from arena_distill.models.int8 import load_int8

        model = load_int8(directory, quantization["method"], dtype, device)
        on_device = True  # a model of bitsandbytes cannot be moved
    try:
        install_head(model, head, device)
    except ValueError as error:
        raise InputError(f"{directory}: {error} -> {AGAIN}") from error
    check_vocabulary(model, tokenizer, str(directory))
    model.config.pad_token_id = tokenizer.pad_token_id
    loaded: torch.nn.Module = model if on_device else model.to(device)
    return loaded.eval()


def _own_head(directory: Path, quantization: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The exported head, if it is the one that the model was quantized with."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from arena_distill.models.head_file import HEAD_SAFETENSORS, head_sha256

    path = directory / HEAD_SAFETENSORS
    if not path.is_file():
        raise InputError(f"{path}: missing; without it the head would be random -> {AGAIN}")
    try:
        head = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}) -> {AGAIN}") from error
    recorded = {quantization["head_sha256"], (read_manifest(directory) or {}).get("head_sha256")} - {None}
    if recorded != {head_sha256(head)}:
        raise InputError(f"{path}: is not the head that this model was made with -> {AGAIN}")
    return head


def quantized_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every quantized layer of a loaded model by name, with its weight as it computes, float32 ``[out, in]``."""
    from arena_distill.models.gptq_linear import GptqLinear
    from arena_distill.models.int8 import int8_weight

    for name, module in model.named_modules():
        weight = module.dequantized() if isinstance(module, GptqLinear) else int8_weight(module)
        if weight is not None:
            yield name, weight
