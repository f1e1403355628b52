"""A LoRA adapter as PEFT saves it: which module gets which factors, and which tensors are replaced whole.

What this project cannot merge is refused by name: an unknown entry of ``adapter_config.json`` may change what the
adapter means. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.models.safetensors_file import StoredTensor, read_header
from arena_distill.runtime.errors import InputError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = ("F16", "BF16", "F32", "F64")

_KEY_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?P<weight>\.weight)?")
# Entries that say how the adapter was trained, or that are read below; all others must be empty.
_KNOWN_ENTRIES = {
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "init_lora_weights", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
# The others (PiSSA, OLoRA, CorDA, LoftQ, …) change the base weights too, which an adapter file does not tell.
_KNOWN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one module: ``delta = scaling * B @ A``."""

    module: str
    a: StoredTensor  # [r, in]; of an embedding [r, vocabulary]
    b: StoredTensor  # [out, r]; of an embedding [width, r]
    scaling: float
    transposed: bool  # the weight is [in, out], or an embedding's [vocabulary, width]
    embedding: bool

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the weight that the pair belongs to."""
        out, inner = self.b.shape[0], self.a.shape[1]
        return (inner, out) if self.transposed else (out, inner)


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter directory: pairs by module name, and replaced tensors by name, both as the trained model had them."""

    directory: Path
    config: dict[str, Any]
    pairs: dict[str, LoraPair]
    replacements: dict[str, StoredTensor]

    @property
    def weights_file(self) -> Path:
        """The file that holds the tensors."""
        return self.directory / ADAPTER_WEIGHTS


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Raises:
        InputError: it is missing or broken.
    """
    file = directory / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{file}: missing -> name the directory of a trained LoRA adapter") from error
    except ValueError as error:
        raise InputError(f"{file}: broken ({error}) -> train or copy the adapter again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: broken, not a JSON object -> train or copy the adapter again")
    return config


def read_adapter(directory: Path) -> LoraAdapter:
    """What an adapter directory holds; the tensors stay on disk.

    Raises:
        InputError: a file is missing or damaged, the adapter is of a kind that cannot be merged, or its tensors
            and its configuration disagree.
    """
    config = read_adapter_config(directory)
    _refuse_unsupported(directory / ADAPTER_CONFIG, config)
    file = directory / ADAPTER_WEIGHTS
    if not file.is_file():
        others = ", ".join(sorted(p.name for p in directory.glob("adapter_model*")))
        advice = f"only {others}; load and save it with PEFT" if others else "train or copy the adapter again"
        raise InputError(f"{file}: missing -> {advice}")
    tensors, _ = read_header(file)
    factors: dict[str, dict[str, StoredTensor]] = {}
    replacements: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(_KEY_PREFIX) or tensor.dtype not in FLOATS:
            raise InputError(f"{file}: {key} ({tensor.dtype}) is not a tensor of a LoRA adapter as PEFT saves them")
        name = key.removeprefix(_KEY_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match and bool(match["embedding"]) != bool(match["weight"]):
            factors.setdefault(match["module"], {})[(match["embedding"] or "") + match["factor"]] = tensor
        elif "lora_" in name:
            raise InputError(f"{file}: {key} cannot be merged -> only plain LoRA factors and whole modules can")
        else:
            replacements[name.replace(".base_layer.", ".")] = tensor  # as PEFT stores embeddings that it adapts
    pairs = {module: _pair(file, module, found, config) for module, found in factors.items()}
    if not pairs:
        raise InputError(f"{file}: holds no LoRA factors -> train or copy the adapter again")
    _require_saved_modules(file, config.get("modules_to_save") or (), replacements)
    return LoraAdapter(directory, config, pairs, replacements)


def _refuse_unsupported(file: Path, config: Mapping[str, Any]) -> None:
    if str(config.get("peft_type")).upper() != "LORA":
        raise InputError(f"{file}: peft_type {config.get('peft_type')} cannot be merged -> only LORA can")
    if config.get("bias", "none") != "none":
        raise InputError(f"{file}: bias={config['bias']!r} cannot be merged -> train with bias='none'")
    if (start := config.get("init_lora_weights")) not in _KNOWN_INITIALISATIONS:
        raise InputError(
            f"{file}: init_lora_weights={start!r} changes the base weights too -> convert the adapter with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    for name, value in sorted(config.items()):
        if value and name not in _KNOWN_ENTRIES:
            raise InputError(f"{file}: {name}={value!r} cannot be merged -> merge it with PEFT, or train without it")


def _pair(file: Path, module: str, found: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> LoraPair:
    embedding = any(key.startswith("embedding_") for key in found)
    kind = "embedding_" if embedding else ""
    if set(found) != {f"{kind}A", f"{kind}B"}:
        raise InputError(f"{file}: {module} has only one of the two LoRA factors -> train or copy the adapter again")
    a, b = found[f"{kind}A"], found[f"{kind}B"]
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{file.parent / ADAPTER_CONFIG}: r={rank!r}, lora_alpha={alpha!r} for {module} -> mend it")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise InputError(
            f"{file}: the factors of {module} have the shapes {list(a.shape)} and {list(b.shape)}; only those of "
            "linear and embedding layers can be merged"
        )
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise InputError(
            f"{file}: the factors of {module} have rank {a.shape[0]} and {b.shape[1]}, {ADAPTER_CONFIG} says {rank} -> "
            "the two files do not belong together"
        )
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(module, a, b, scaling, embedding or bool(config.get("fan_in_fan_out")), embedding)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """As PEFT reads it: the first key that matches the whole module name, or the end of it after a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _require_saved_modules(file: Path, names: Iterable[str], replacements: Iterable[str]) -> None:
    # PEFT lists `classifier` and `score` for every classifier, of which a model has one.
    wanted = tuple(names)
    parts = [set(name.split(".")) for name in replacements]
    if wanted and not any(set(name.split(".")) <= found for name in wanted for found in parts):
        raise InputError(f"{file}: lacks the modules that were trained whole ({', '.join(wanted)}) -> copy it again")
