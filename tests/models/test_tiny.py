"""Tiny checkpoints are real checkpoints: loadable by the Auto classes, and the same every time."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest

from arena_distill.models.tiny import TinySize, families, make_tiny_model


@pytest.mark.parametrize("family", families())
def test_equal_arguments_give_equal_files(family: str, sample_texts: list[str], tmp_path: Path) -> None:
    size = TinySize(hidden=16, layers=1, heads=2, vocabulary=900, positions=64)
    for name in ("one", "two"):
        make_tiny_model(family, sample_texts[:600], tmp_path / name, size, seed=5)
    names = [path.name for path in (tmp_path / "one").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_decoders_load_as_causal_models_and_their_tokenizers_lose_nothing(family: str, backbones: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(backbones / family)
    tokenizer = AutoTokenizer.from_pretrained(backbones / family)
    assert model.config.vocab_size == len(tokenizer)
    text = "2 + 2 = 4, naïve 日本 😀\n\tend"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert max(ids) < model.config.vocab_size


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2"])
def test_encoders_load_as_classifiers_with_three_labels(family: str, backbones: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(backbones / family)
    tokenizer = AutoTokenizer.from_pretrained(backbones / family)
    assert model.config.num_labels == 3
    ids = tokenizer("The capital of France", "is Paris")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids.count(tokenizer.sep_token_id) == 2
    assert tokenizer.unk_token_id not in ids
