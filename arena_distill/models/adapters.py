"""LoRA adapters: adding new ones, putting saved ones onto the base they belong to, and 4-bit bases."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from arena_distill.models.architecture import LINEAR_MODULES
from arena_distill.models.classifier import HEAD_MODULES, hub_errors
from arena_distill.runtime.errors import InputError, SettingsError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_lora(model: Any, *, base: str, r: int, alpha: int, dropout: float, train_head: bool) -> Any:
    """Freeze ``model`` and give its projections LoRA factors (Hu et al. 2021); only those, and the head, train.

    Of a decoder the attention and feed-forward projections are adapted, as in the first-place solution; of any other
    architecture all linear layers but the head.

    Args:
        model: a causal LM or sequence classifier.
        base: where it was loaded from; the saved adapter will name it.
        r: rank.
        alpha: the product B·A counts ``alpha / r``.
        dropout: on the adapter's input.
        train_head: train a copy of the classification head in full and save it with the adapter.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    decoder = set(LINEAR_MODULES) <= names
    # Wherever they stand: BERT's pooler is inside the body, and new where the checkpoint is a masked LM's.
    heads = sorted({last for name, _ in model.named_modules() if (last := name.rpartition(".")[2]) in HEAD_MODULES})
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(LINEAR_MODULES) if decoder else "all-linear",
        exclude_modules=None if decoder else rf"(.*\.)?({'|'.join(heads)})(\..*)?",
        modules_to_save=heads if train_head else None,
    )
    with _no_gptqmodel():
        wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # what trains needs all its bits; the base may have 16 or 4
    wrapped.peft_config["default"].base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    return wrapped


def base_of_adapter(directory: Path) -> str:
    """The base model's name or directory, as the adapter's own configuration has it.

    Raises:
        InputError: there is no adapter, or its configuration is broken.
    """
    path = directory / ADAPTER_CONFIG
    try:
        base = str(json.loads(path.read_text("utf-8"))["base_model_name_or_path"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: no adapter there -> train the teacher of this fold first (step 3)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: broken ({error!r}) -> train the adapter again") from error
    beside = directory.parent / Path(base).name
    if Path(base).is_absolute() and not Path(base).exists() and (beside / "config.json").is_file():
        return str(beside)  # the whole run was moved; that it is the same base is checked by its identity
    return base


def load_adapter(model: torch.nn.Module, directory: Path) -> torch.nn.Module:
    """``model`` with the saved adapter on it.

    Raises:
        InputError: the adapter is damaged, or belongs to a model with other layers.
    """
    from peft import PeftModel, get_peft_model_state_dict

    hint = "give the base that it was trained on"
    with hub_errors(str(directory)), _no_gptqmodel():
        try:
            loaded = PeftModel.from_pretrained(model, str(directory))
        except RuntimeError as error:  # shapes disagree
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{directory}: this adapter belongs to another base model ({reason}) -> {hint}") from error
        with safe_open(directory / ADAPTER_WEIGHTS, "pt") as file:
            saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(loaded))
    if odd := sorted(saved ^ wanted):  # peft itself only warns, and leaves random or zero factors
        raise InputError(f"{directory}: this adapter belongs to another base model (see {odd[0]}) -> {hint}")
    return loaded


@contextmanager
def _no_gptqmodel() -> Iterator[None]:
    """Keep PEFT from importing GPTQModel only to ask whether our layers are of its kind, which they never are.

    The import takes seven seconds, prints a banner and sets environment variables.
    """
    hidden = "gptqmodel" not in sys.modules
    if hidden:
        sys.modules["gptqmodel"] = None  # type: ignore[assignment]  # as Python marks what must not be found
    try:
        yield
    finally:
        if hidden:
            del sys.modules["gptqmodel"]


def nf4_config(compute_dtype: torch.dtype) -> Any:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA); the head stays as it is.

    Args:
        compute_dtype: what matrix products are computed in.

    Raises:
        SettingsError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401  (transformers' own message about a missing package is a page long)
    except ImportError as error:
        raise SettingsError("4-bit weights need bitsandbytes -> pip install 'arena-distill[int8]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=[*HEAD_MODULES, "lm_head"],
    )
