"""A judge's model from its directory, whatever it is there: classifier, quantized or not, label-token causal LM, or
adapter on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from arena_distill.models.adapters import ADAPTER_CONFIG, base_of_adapter, load_adapter
from arena_distill.models.backbone import check_backbone
from arena_distill.models.classifier import load_classifier
from arena_distill.models.label_tokens import LABEL_TOKENS_FILE, LabelTokens, load_label_token_classifier
from arena_distill.models.merge import check_base
from arena_distill.models.quantized import is_quantized, load_quantized
from arena_distill.runtime.errors import InputError, SettingsError


def load_saved_model(directory: Path, tokenizer: Any, *, base: str = "", **options: Any) -> torch.nn.Module:
    """The trained model in ``directory``; nothing in it is new or random.

    Args:
        directory: what a training stage, a merge or a quantization wrote.
        tokenizer: from the same directory.
        base: of an adapter; by default the one that its configuration names.
        options: passed to ``from_pretrained`` (``dtype``, ``quantization_config``, ``device_map`` …).

    Raises:
        InputError: there is no model, a file is damaged, or an adapter belongs to another base.
        SettingsError: a model that is quantized already should be quantized while loading.
    """
    adapter = (directory / ADAPTER_CONFIG).is_file()
    if not adapter and is_quantized(directory):
        return _load_quantized(directory, tokenizer, **options)
    name = str(directory)
    if adapter:
        name = check_backbone(base or base_of_adapter(directory), f"base of the adapter {directory}")
        check_base(directory, name)
    if (directory / LABEL_TOKENS_FILE).is_file():
        model: torch.nn.Module = load_label_token_classifier(name, tokenizer, LabelTokens.load(directory), **options)
    else:
        model, fresh = load_classifier(name, tokenizer, **options)
        if fresh and not adapter:
            raise InputError(
                f"{directory}: the saved model lacks some of its weights -> a random head would be used; train it again"
            )
    return load_adapter(model, directory) if adapter else model


def _load_quantized(directory: Path, tokenizer: Any, **options: Any) -> torch.nn.Module:
    if options.get("quantization_config") is not None:
        raise SettingsError(f"{directory}: has quantized weights already -> load it as it is, without another width")
    device = options.get("device_map")
    if isinstance(device, dict):
        device = device.get("")
    elif device == "auto":  # it was made to fit one GPU
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_quantized(directory, tokenizer, dtype=options.get("dtype", torch.float32), device=device or "cpu")
