"""Encoders of 8-bit products against the same encoders in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import TextFormat
from arena_distill.data.records import Rows
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.int8_cpu import FAMILIES, Fixed, Int8Linear, can_compute_int8
from arena_distill.models.tiny import TinySize, make_tiny_model
from tests.models.test_unpadded import SMALL

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "train.csv"

with_vnni = pytest.mark.skipif(not can_compute_int8("bert"), reason="this CPU has no VNNI")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load_labelled(SAMPLE).rows.slice(0, 40)


def probabilities(judge: ClassifierJudge, rows: Rows) -> np.ndarray:
    return np.asarray(torch.from_numpy(judge.logits(rows)).softmax(dim=1))


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose answers differ between rows."""
    from transformers import AutoModelForSequenceClassification

    directory = tmp_path_factory.mktemp(request.param)
    texts = SAMPLE.read_text("utf-8").splitlines()[:200]
    make_tiny_model(request.param, texts, directory, TinySize(hidden=64, vocabulary=600, positions=512), seed=1)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(40 if name == "classifier.weight" else 4)
    model.save_pretrained(directory)
    tokenizer = load_tokenizer(str(directory))
    TextFormat.for_tokenizer(tokenizer, getattr(model.config, "type_vocab_size", 0)).save(directory)
    return directory


@with_vnni
def test_probabilities_are_those_of_float32_but_for_rounding(directory: Path, rows: Rows) -> None:
    whole = probabilities(load_judge(directory, device="cpu"), rows)
    judge = load_judge(directory, quant="int8", device="cpu")
    replaced = [module for module in judge.model.modules() if isinstance(module, Int8Linear)]
    assert len(replaced) == 10  # five a layer; the one after attention stays
    assert sum(module.activation == "gelu" for module in replaced) == 2
    rounded = probabilities(judge, rows)
    assert np.ptp(whole, axis=0).max() > 0.1  # answers differ, so that the next line says something
    assert 0 < np.abs(rounded - whole).mean() < 0.01
    assert np.abs(rounded - whole).max() < 0.05


@with_vnni
def test_a_row_counts_alike_beside_any_others(directory: Path, rows: Rows) -> None:
    judge = load_judge(directory, quant="int8", device="cpu")
    together = judge.logits(rows)
    judge.max_batch_tokens = 1  # every row by itself
    np.testing.assert_allclose(judge.logits(rows), together, atol=0.02)


@with_vnni
def test_equal_loads_give_equal_answers(directory: Path, rows: Rows) -> None:
    first, second = (load_judge(directory, quant="int8", device="cpu").logits(rows) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@with_vnni
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_what_its_integers_stand_for(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 20, bias=bias)
    x = torch.randn(5, 48)
    given = Fixed(float(x.abs().max()) / 127, 128)
    layer = Int8Linear(linear, given, torch.float32)
    if activation == "gelu":
        layer.activate(Fixed(0.01, 17))
    weight = (linear.weight / layer.scales[:, None]).round() * layer.scales[:, None]
    exact = nn.functional.linear((given(x).float() - 128) * given.scale, weight, linear.bias)
    with torch.inference_mode():
        found = layer(x)
    if activation == "gelu":
        assert found.dtype == torch.uint8
        exact, found = nn.functional.gelu(exact), (found.float() - 17) * 0.01
        torch.testing.assert_close(found, exact.clamp(-0.17, 2.38), atol=0.0051, rtol=0)
    else:
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_are_the_nearest_and_end_at_the_range(dtype: torch.dtype) -> None:
    quantize = Fixed(0.5, 128)
    x = torch.tensor([0.0, 0.24, 0.26, -0.26, 63.5, 64.0, 1000.0, -64.0, -1000.0], dtype=dtype)
    assert quantize(x).tolist() == [128, 128, 129, 127, 255, 255, 255, 0, 0]
    assert quantize(x) is quantize(x)  # layers that share an input share its integers
    assert quantize(x.clone()) is not quantize(x)


def test_what_else_there_is_goes_to_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SMALL) >= FAMILIES
    assert not can_compute_int8("llama") and not can_compute_int8(None)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not can_compute_int8("bert")
