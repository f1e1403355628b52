"""Dimensions and exact parameter counts of decoder language models, from their ``config.json`` or a built-in table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.runtime.errors import InputError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The weight matrices of one layer, by the names that LoRA targets."""

_QKV, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
_TIED_BY_DEFAULT = {"llama": False, "mistral": False, "qwen2": False, "gemma2": True}


@dataclass(frozen=True)
class Architecture:
    """What the size of a causal language model depends on. ``biased`` names the linear modules that have a bias."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool
    biased: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> Architecture:
        """Read a ``config.json`` that is already parsed.

        Raises:
            InputError: the model type is not one we know, or a dimension is missing or no positive whole number;
                names ``source`` and the key.
        """
        kind = config.get("model_type")
        if kind not in _TIED_BY_DEFAULT:
            known = ", ".join(_TIED_BY_DEFAULT)
            raise InputError(f"{source}: cannot size a model of type {kind!r} -> use one of the types {known}")

        def size(key: str, default: int | None = None) -> int:
            value = config.get(key)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{source}: {key} must be a positive whole number, not {value!r} -> mend the file")
            return value

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        tied = config.get("tie_word_embeddings")
        return cls(
            model_type=kind,
            hidden=hidden,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", 256 if kind == "gemma2" else hidden // heads),
            intermediate=size("intermediate_size"),
            vocabulary=size("vocab_size"),
            tied_embeddings=_TIED_BY_DEFAULT[kind] if tied is None else bool(tied),
            biased=_biased_modules(kind, config),
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output features of each linear module of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        shapes += [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return dict(zip(LINEAR_MODULES, shapes, strict=True))

    @property
    def norms(self) -> int:
        """RMS norms in a layer: before attention and MLP, and in Gemma-2 after them too."""
        return 4 if self.model_type == "gemma2" else 2

    @property
    def linear_parameters(self) -> int:
        """Elements of the weight matrices of one layer, without biases: what NF4 quantizes."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        biases = sum(self.linears[module][1] for module in self.biased)
        return self.linear_parameters + biases + self.norms * self.hidden

    @property
    def outer_parameters(self) -> int:
        """Parameters outside the layers: embeddings, final norm, and the head unless it is the embeddings."""
        return self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the causal language model; tied embeddings count once."""
        return self.layers * self.layer_parameters + self.outer_parameters


def _biased_modules(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    if kind == "qwen2":
        return _QKV
    if kind == "mistral":
        return ()
    attention = (*_QKV, "o_proj") if config.get("attention_bias") else ()
    return attention + (_MLP if kind == "llama" and config.get("mlp_bias") else ())


def _llama(
    hidden: int, layers: int, heads: int, intermediate: int, *, head_dim: int = 128, tied: bool = False
) -> Architecture:
    return Architecture("llama", hidden, layers, heads, 8, head_dim, intermediate, 128256, tied)


def _qwen(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, tied: bool = False
) -> Architecture:
    return Architecture("qwen2", hidden, layers, heads, kv_heads, 128, intermediate, vocabulary, tied, _QKV)


def _gemma(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate: int) -> Architecture:
    return Architecture("gemma2", hidden, layers, heads, kv_heads, head_dim, intermediate, 256000, True)


_LLAMA_70B, _LLAMA_8B = _llama(8192, 80, 64, 28672), _llama(4096, 32, 32, 14336)

_SIZES: dict[str, Architecture] = {
    "meta-llama/Meta-Llama-3-70B": _LLAMA_70B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_8B,
    "meta-llama/Llama-3.3-70B": _LLAMA_70B,
    "meta-llama/Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.2-3B": _llama(3072, 28, 24, 8192, tied=True),
    "meta-llama/Llama-3.2-1B": _llama(2048, 16, 32, 8192, head_dim=64, tied=True),
    "Qwen/Qwen2-72B": _qwen(8192, 80, 64, 8, 29568, 152064),
    "Qwen/Qwen2-7B": _qwen(3584, 28, 28, 4, 18944, 152064),
    "Qwen/Qwen2-1.5B": _qwen(1536, 28, 12, 2, 8960, 151936, tied=True),
    "Qwen/Qwen2.5-72B": _qwen(8192, 80, 64, 8, 29568, 152064),
    "Qwen/Qwen2.5-32B": _qwen(5120, 64, 40, 8, 27648, 152064),
    "Qwen/Qwen2.5-14B": _qwen(5120, 48, 40, 8, 13824, 152064),
    "Qwen/Qwen2.5-7B": _qwen(3584, 28, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-1.5B": _qwen(1536, 28, 12, 2, 8960, 151936, tied=True),
    "google/gemma-2-27b": _gemma(4608, 46, 32, 16, 128, 36864),
    "google/gemma-2-9b": _gemma(3584, 42, 16, 8, 256, 14336),
    "google/gemma-2-2b": _gemma(2304, 26, 8, 4, 256, 9216),
}
KNOWN: dict[str, Architecture] = {
    f"{name}{suffix}": architecture
    for name, architecture in _SIZES.items()
    for suffix in ("", "-it" if name.startswith("google/") else "-Instruct")
}
"""Hub name to dimensions, as published in each model's ``config.json``, so that sizing needs no network."""

LADDERS: dict[str, tuple[str, ...]] = {
    "llama": (
        "meta-llama/Meta-Llama-3-70B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
    ),
    "qwen": (
        "Qwen/Qwen2-72B-Instruct",
        "Qwen/Qwen2.5-32B-Instruct",
        "Qwen/Qwen2.5-14B-Instruct",
        "Qwen/Qwen2-7B-Instruct",
        "Qwen/Qwen2-1.5B-Instruct",
    ),
    "gemma": ("google/gemma-2-27b-it", "google/gemma-2-9b-it", "google/gemma-2-2b-it"),
}
"""Family to hub names, from big to small: what to fall back to when a model does not fit."""


def architecture_of(name: str) -> Architecture:
    """Dimensions of a model directory or a hub name; of names in ``KNOWN`` (in any case) without the network.

    Raises:
        InputError: there is no readable ``config.json``, it is of an unknown kind, or the hub cannot be reached.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _read_config(directory / "config.json")
    known = {key.lower(): architecture for key, architecture in KNOWN.items()}.get(name.lower())
    return known or _read_config(_config_from_hub(name))


def _config_from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: its size is not known, and its config.json is not to be had from the hub ({reason})"
            " -> name a directory that holds the model"
        ) from error


def _read_config(file: Path) -> Architecture:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}) -> name a complete model directory") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds no JSON object -> name a complete model directory")
    return Architecture.from_config(config, str(file))
