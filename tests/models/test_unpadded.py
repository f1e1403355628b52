"""Classifiers without padding against transformers' own forward pass with padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from arena_distill.models import attention_within
from arena_distill.models.unpadded import FAMILIES, without_padding

LENGTHS = (17, 1, 30, 8)
PAD = 1
SHAPE = {"vocab_size": 99, "pad_token_id": PAD, "num_labels": 3}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": None}
SMALL: dict[str, dict[str, Any]] = {
    "bert": ENCODER | {"type_vocab_size": 3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "roberta": ENCODER | {"max_position_embeddings": 40},
    "xlm-roberta": ENCODER | {"max_position_embeddings": 40},
    "llama": DECODER,
    "mistral": DECODER | {"sliding_window": 6},
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gemma2": DECODER | {"sliding_window": 6, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
}


def make(family: str, **more: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SHAPE, **(SMALL[family] | more))
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the heads start at nearly nothing, and would show nothing
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def padded_batch(family: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask.bool(), torch.randint(2, 99, mask.shape), PAD)
    batch = {"input_ids": ids, "attention_mask": mask}
    if family == "bert":
        batch["token_type_ids"] = torch.randint(0, 3, mask.shape) * mask
    return batch


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_family_is_tested() -> None:
    assert set(SMALL) == FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_and_gradients_are_those_of_the_padded_pass(family: str) -> None:
    model, batch = make(family), padded_batch(family)
    logits = model(**batch).logits
    logits[:, 1].sum().backward()
    gradients = gradients_of(model)
    model.zero_grad()

    assert without_padding(model)
    ours = model(**batch).logits
    assert logits.std(dim=0).min() > 1e-2, "equal rows would show nothing"
    assert torch.allclose(ours, logits, atol=2e-5), (ours - logits).abs().max()
    ours[:, 1].sum().backward()
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, gradients[name], atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attention_in_blocks_is_the_same(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is done on a CPU in 16 bits; here in 64, so that a difference would be one of the method."""
    model, batch = make(family).double(), padded_batch(family)
    without_padding(model)
    logits = model(**batch).logits
    monkeypatch.setattr(attention_within, "_is_half_on_cpu", lambda tensor: True)
    assert torch.allclose(model(**batch).logits, logits, atol=1e-6), "with gradients"
    monkeypatch.setattr(attention_within, "_CACHED_SCORES", 0)
    monkeypatch.setattr(attention_within, "_ROWS", rows)
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, logits, atol=1e-6), "without gradients"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_in_16_bits_the_logits_are_as_close_as_those_of_the_padded_pass(family: str) -> None:
    model, batch = make(family), padded_batch(family)
    with torch.inference_mode():
        exact = model(**batch).logits
        padded = model.bfloat16()(**batch).logits - exact
        without_padding(model)
        ours = model(**batch).logits - exact
    assert ours.abs().max() < max(0.05 * exact.abs().max(), 2 * padded.abs().max())


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2"])
def test_checkpointed_layers_give_the_same_gradients(family: str) -> None:
    model, batch = make(family).train(), padded_batch(family)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    without_padding(model)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        found.append(gradients_of(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3), (False, 3)])
def test_gradients_of_attention_are_those_of_its_differences(
    causal: bool, window: int | None, softcap: float | None, dropout: float
) -> None:
    see = attention_within.Sight(causal, window, 0.4, softcap)
    bounds = attention_within.Bounds([0, 2, 7, 8])
    torch.manual_seed(0)
    parts = [torch.randn(heads, 8, 3, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]

    def attend(*qkv: torch.Tensor) -> Any:
        torch.manual_seed(1)  # the same weights are dropped each time
        return attention_within._PartByPart.apply(*qkv, bounds, see, dropout)

    assert torch.autograd.gradcheck(attend, parts)
    if not dropout:
        query, key, value = (part.detach() for part in parts)
        torch.testing.assert_close(attend(*parts), attention_within._attend_in_blocks(query, key, value, bounds, see))


@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.parametrize(("causal", "window", "softcap"), [(False, None, None), (True, 9, None), (True, None, 30.0)])
def test_in_16_bits_small_and_large_scores_are_attended_to_alike(
    causal: bool, window: int | None, softcap: float | None, size: int
) -> None:
    """Exponentials of large scores are none that a number could hold; those of small ones need no maximum."""
    see = attention_within.Sight(causal, window, 0.25, softcap)
    bounds = attention_within.Bounds([0, 40, 41, 205])
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(heads, 205, 16, generator=generator).bfloat16() for heads in (4, 2, 2)]
    parts[0] *= size**2
    largest = attention_within._largest_scores(parts[0] * 0.25, parts[1], bounds, see)
    assert (max(largest) < attention_within._SMALL_SCORE) == (size == 1 or softcap is not None), largest
    ours = attention_within._attend_in_blocks(*parts, bounds, see)
    exact = attention_within._attend_in_blocks(*(part.double() for part in parts), bounds, see)
    trained = attention_within._PartByPart.apply(*(part.double() for part in parts), bounds, see, 0.0)
    torch.testing.assert_close(trained, exact)
    # Scores are rounded to 8 bits of mantissa, which moves the weights of large ones.
    off = (ours.double() - exact).norm() / exact.norm()
    assert off < (0.02 if size == 1 else 0.15), off


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_models_whose_weights_have_32_bits_train_in_16(family: str) -> None:
    """Rotary positions make 32 bits of query and key there, but not of value."""
    model, batch = make(family), padded_batch(family)
    without_padding(model)
    found = []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(**batch).logits.float().square().sum()
        loss.backward()
        found.append(torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99


def test_a_model_without_replaceable_attention_is_left_alone() -> None:
    config = AutoConfig.for_model("deberta-v2", **SHAPE, **ENCODER)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    before = model.forward
    assert not without_padding(model)
    assert model.forward == before


@pytest.mark.parametrize("outcome", ["right", "wrong", "fails"])
def test_a_variable_length_kernel_is_used_only_after_a_trial(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself, on a CPU and so with a stand-in for the GPU's kernel."""

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Any, see: Any) -> torch.Tensor:
        if outcome == "fails":
            raise RuntimeError("no kernel image is available")
        exact = attention_within._one_by_one(query, key, value, bounds, see)
        return exact if outcome == "right" else exact.roll(1, dims=0)

    monkeypatch.setattr(attention_within, "variable_length", kernel)
    attention_within._trial.cache_clear()
    with torch.inference_mode():
        works = attention_within._trial(torch.device("cpu"), torch.bfloat16, 4, 2, 16, True, None)
    attention_within._trial.cache_clear()
    assert works == (outcome == "right")
