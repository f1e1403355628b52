"""What only GPTQ can do or fail at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arena_distill.inference.judge import load_judge
from arena_distill.models.gptq import GptqUnsupported, quantize_gptq, usable_group_size
from arena_distill.models.tiny import TinySize, make_tiny_model
from arena_distill.runtime.errors import ArenaError
from tests.conversion.quantize_cases import LENGTH, make_student, quantize, unseen_rows


def test_four_bits_are_smaller_and_rougher_than_eight(
    backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = make_student(backbones / "llama", tmp_path / "student")
    quantize(
        student, tmp_path / "out", quant_bits=4, quant_min_agreement=0.5, quant_max_logloss_increase=1.0
    )  # a network of random weights loses much
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert all(0.02 < layer["weight_error"] < 0.3 for layer in report["layers"])
    rows = unseen_rows().slice(0, 100)
    before, after = (load_judge(path, max_length=LENGTH).logits(rows) for path in (student, tmp_path / "out"))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() > 0.7
    assert "groups of 32 instead of groups of 128" in capsys.readouterr().out


def test_the_group_size_is_the_largest_power_of_two_that_divides_every_layer(
    sample_texts: list[str], tmp_path: Path
) -> None:
    for hidden, heads, expected in ((96, 2, 32), (128, 2, 128), (40, 2, -1)):
        size = TinySize(hidden=hidden, layers=1, heads=heads, vocabulary=1200, positions=64)
        make_tiny_model("llama", sample_texts[:50], tmp_path / str(hidden), size, seed=0)
        assert usable_group_size(tmp_path / str(hidden), 128) == expected
    assert usable_group_size(tmp_path / "128", 16) == 16
    assert usable_group_size(tmp_path / "128", -1) == -1


def test_an_architecture_without_a_causal_language_model_is_unsupported(backbones: Path, tmp_path: Path) -> None:
    student = make_student(backbones / "distilbert", tmp_path / "student")
    with pytest.raises(GptqUnsupported, match="no causal language model"):
        quantize_gptq(student, tmp_path, bits=8, group_size=32, examples=[[1] * 20], device="cpu")


def test_a_failure_of_gptqmodel_shows_the_end_of_its_log(backbones: Path, tmp_path: Path) -> None:
    student = make_student(backbones / "llama", tmp_path / "student")
    (tmp_path / "out").mkdir()
    with (student / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ArenaError, match=r"GPTQModel failed with exit code 1(.|\n)*Error"):
        quantize_gptq(student, tmp_path / "out", bits=8, group_size=32, examples=[[5] * 20], device="cpu")
