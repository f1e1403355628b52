"""The head beside a saved student is the model's, by name and to the last bit, from a whole model or an adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from arena_distill.models.adapters import ADAPTER_WEIGHTS, add_lora
from arena_distill.models.classifier import HEAD_MODULES, load_classifier, load_tokenizer
from arena_distill.models.head_file import HEAD_PT, HEAD_SAFETENSORS, head_sha256, read_head, save_head
from arena_distill.runtime.errors import EXIT_BAD_INPUT, InputError

HEADS = {
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"},
    "deberta-v2": {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"},
    "distilbert": {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    "llama": {"score.weight"},
    "qwen2": {"score.weight"},
    "gemma2": {"score.weight"},
}
KINDS = ("full", "adapter")


def saved(
    base: Path, directory: Path, kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, torch.Tensor]:
    """Save a classifier whose trained weights are random; the head by its names in the plain model's state."""
    torch.manual_seed(0)
    model: Any = load_classifier(str(base), load_tokenizer(str(base)), dtype=dtype)[0]
    if kind == "adapter":
        model = add_lora(model, base=str(base), r=2, alpha=4, dropout=0.0, train_head=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(directory, **options)
    if kind == "adapter":
        model = model.merge_and_unload()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if set(name.split(".")) & set(HEAD_MODULES)}


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", HEADS)
def test_head_has_the_names_and_values_of_the_plain_models_state(
    family: str, kind: str, backbones: Path, tmp_path: Path
) -> None:
    expected = saved(backbones / family, tmp_path, kind)
    assert expected.keys() == HEADS[family]
    head = read_head(tmp_path)
    assert_equal(head, expected)
    assert not any("lora" in name or "modules_to_save" in name for name in head)
    outputs = [tensor for name, tensor in head.items() if name.endswith(("classifier.weight", "score.weight"))]
    assert any(tensor.shape == (3, 32) for tensor in outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", HEADS)
def test_both_files_hold_the_head_and_the_pickle_needs_no_trust(
    family: str, kind: str, backbones: Path, tmp_path: Path
) -> None:
    expected = saved(backbones / family, tmp_path, kind)
    save_head(tmp_path)
    pickled = torch.load(tmp_path / HEAD_PT, weights_only=True)
    assert type(pickled) is dict
    assert_equal(pickled, expected)
    assert_equal(load_file(tmp_path / HEAD_SAFETENSORS), expected)
    with safe_open(tmp_path / HEAD_SAFETENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("family", HEADS)
def test_the_head_file_gives_a_headless_body_its_judgement_back(family: str, backbones: Path, tmp_path: Path) -> None:
    """What quantization will use it for: strict names, and the same logits."""
    saved(backbones / family, tmp_path, "full")
    save_head(tmp_path)
    ids = torch.randint(5, 1000, (2, 9), generator=torch.Generator().manual_seed(0))
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for name, parameter in model.named_parameters():
            if name in HEADS[family]:
                parameter.zero_()
        assert not torch.allclose(model(input_ids=ids).logits, before)
        missing, unexpected = model.load_state_dict(torch.load(tmp_path / HEAD_PT, weights_only=True), strict=False)
        assert not unexpected and not set(missing) & HEADS[family]
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_save_writes_the_same_again_and_does_not_read_its_own_file(
    kind: str, backbones: Path, tmp_path: Path
) -> None:
    expected = saved(backbones / "bert", tmp_path, kind)
    save_head(tmp_path)
    first = (tmp_path / HEAD_SAFETENSORS).read_bytes()
    save_file({name: torch.zeros_like(tensor) for name, tensor in expected.items()}, tmp_path / HEAD_SAFETENSORS)
    save_head(tmp_path)
    assert (tmp_path / HEAD_SAFETENSORS).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith((".", "classifier_head"))} == {
        HEAD_PT,
        HEAD_SAFETENSORS,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_heads_keep_their_type(dtype: torch.dtype, backbones: Path, tmp_path: Path) -> None:
    expected = saved(backbones / "llama", tmp_path, "full", dtype)
    assert expected["score.weight"].dtype == dtype
    save_head(tmp_path)
    assert_equal(torch.load(tmp_path / HEAD_PT, weights_only=True), expected)
    assert_equal(load_file(tmp_path / HEAD_SAFETENSORS), expected)


def test_a_head_that_lies_in_several_files_is_found_whole(backbones: Path, tmp_path: Path) -> None:
    expected = saved(backbones / "bert", tmp_path, "full", max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({index[name] for name in expected}) > 1, "else one file would be enough"
    assert_equal(read_head(tmp_path), expected)


# Refusals


def refusal(directory: Path, named: Path) -> str:
    with pytest.raises(InputError) as caught:
        save_head(directory)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert message.startswith(f"{named}: ") and "-> train the student again" in message
    assert not (directory / HEAD_PT).exists() and not (directory / HEAD_SAFETENSORS).exists()
    return message


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_language_model_has_no_head(family: str, backbones: Path, tmp_path: Path) -> None:
    copy = tmp_path / family
    copy.mkdir()
    for file in (backbones / family).iterdir():
        os.link(file, copy / file.name)
    assert "no classification head" in refusal(copy, copy)


def test_an_adapter_that_was_saved_without_its_head_has_none(backbones: Path, tmp_path: Path) -> None:
    base = backbones / "llama"
    model = load_classifier(str(base), load_tokenizer(str(base)))[0]
    add_lora(model, base=str(base), r=2, alpha=4, dropout=0.0, train_head=False).save_pretrained(tmp_path)
    assert "no classification head" in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_without_weights_has_no_head(there: bool, tmp_path: Path) -> None:
    directory = tmp_path if there else tmp_path / "nowhere"
    assert "no classification head" in refusal(directory, directory)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_cut_off_are_refused_by_file(kind: str, keep: float, backbones: Path, tmp_path: Path) -> None:
    saved(backbones / "bert", tmp_path, kind)
    file = tmp_path / (ADAPTER_WEIGHTS if kind == "adapter" else "model.safetensors")
    os.truncate(file, int(file.stat().st_size * keep))
    assert "cannot be read" in refusal(tmp_path, file)


def test_text_in_the_place_of_weights_is_refused(backbones: Path, tmp_path: Path) -> None:
    saved(backbones / "bert", tmp_path, "full")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "cannot be read" in refusal(tmp_path, tmp_path / "model.safetensors")


# Identity


def test_the_identity_of_a_head_is_that_of_its_names_shapes_and_values() -> None:
    head = {"score.weight": torch.arange(6.0).reshape(3, 2), "score.bias": torch.ones(3)}
    same = {name: head[name].to(torch.bfloat16) for name in reversed(head)}  # whole numbers: nothing is rounded
    assert head_sha256(head) == head_sha256(same)
    strided = {**head, "score.weight": head["score.weight"].T.contiguous().T}
    assert head_sha256(strided) == head_sha256(head)
    others = [
        {**head, "score.weight": head["score.weight"] * (1 + 2**-23)},
        {**head, "score.weight": head["score.weight"].reshape(2, 3)},
        {"score.weight": head["score.weight"], "score.bais": head["score.bias"]},
        {"score.weight": head["score.weight"]},
    ]
    assert len({head_sha256(other) for other in [head, *others]}) == 5


def test_an_adapters_head_and_that_of_the_merged_model_have_one_identity(backbones: Path, tmp_path: Path) -> None:
    from arena_distill.models.merge import merge_adapter

    for family in ("bert", "llama"):
        saved(backbones / family, tmp_path / family, "adapter")
        merge_adapter(str(backbones / family), tmp_path / family, tmp_path / f"{family}_merged")
        one, two = (read_head(tmp_path / name) for name in (family, f"{family}_merged"))
        assert head_sha256(one) == head_sha256(two)
