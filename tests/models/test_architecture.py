"""Parameter counts against transformers' own models, and what a config.json must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arena_distill.models.architecture import KNOWN, LADDERS, Architecture, architecture_of
from arena_distill.runtime.errors import InputError

PUBLISHED = {  # billions of parameters, as the model cards give them
    "meta-llama/Meta-Llama-3-8B-Instruct": 8.03,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70.55,
    "meta-llama/Llama-3.2-1B-Instruct": 1.24,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "Qwen/Qwen2-1.5B-Instruct": 1.54,
    "Qwen/Qwen2-7B-Instruct": 7.62,
    "Qwen/Qwen2-72B-Instruct": 72.7,
    "Qwen/Qwen2.5-14B-Instruct": 14.8,
    "Qwen/Qwen2.5-32B-Instruct": 32.8,
    "google/gemma-2-2b-it": 2.61,
    "google/gemma-2-9b-it": 9.24,
    "google/gemma-2-27b-it": 27.2,
}
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80, "vocab_size": 99}


def counted(config: dict[str, Any]) -> int:
    """The number of parameters of transformers' model of a config, built without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(parameter.numel() for parameter in model.parameters())


def as_config(arch: Architecture) -> dict[str, Any]:
    return {
        "model_type": arch.model_type,
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.intermediate,
        "vocab_size": arch.vocabulary,
        "tie_word_embeddings": arch.tied_embeddings,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_exactly_the_parameters_of_the_real_architecture(name: str) -> None:
    arch = KNOWN[name]
    assert arch.parameters == counted(as_config(arch))
    digits = len(str(PUBLISHED[name]).partition(".")[2])
    assert round(arch.parameters / 1e9, digits) == PUBLISHED[name]
    assert Architecture.from_config(as_config(arch)) == arch


@pytest.mark.parametrize(
    "extra",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
        {"model_type": "llama", "num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "gemma2", "num_key_value_heads": 2},
        {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 12, "attention_bias": True},
        {"model_type": "gemma2", "num_key_value_heads": 3, "tie_word_embeddings": False},
    ],
    ids=lambda extra: "-".join(extra.values() if len(extra) == 1 else [extra["model_type"], *list(extra)[1:]]),
)
def test_parameters_follow_biases_head_dim_and_ties(extra: dict[str, Any]) -> None:
    config = SMALL | extra
    assert Architecture.from_config(config).parameters == counted(config)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_saved_model_directory_has_the_parameters_in_its_files(backbones: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(backbones / family)
    assert architecture_of(str(backbones / family)).parameters == model.num_parameters()


def test_ladders_go_down_and_need_no_network() -> None:
    for names in LADDERS.values():
        sizes = [architecture_of(name).parameters for name in names]
        assert sizes == sorted(set(sizes), reverse=True)
    assert architecture_of("google/GEMMA-2-9B-it") == KNOWN["google/gemma-2-9b-it"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": "gemma3", "text_config": {}}, "'gemma3'"),
        ({"model_type": None}, "None"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "99"}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads"),
    ],
)
def test_a_config_that_cannot_be_sized_names_file_and_key(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"} | change))
    with pytest.raises(InputError, match=named) as caught:
        architecture_of(str(tmp_path))
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\xff"])
def test_a_broken_config_file_is_an_input_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json"):
        architecture_of(str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/never-heard-of-it", "not a/valid/name"])
def test_an_unknown_model_without_a_network_says_what_to_do(name: str) -> None:
    with pytest.raises(InputError, match="name a directory"):
        architecture_of(name)
