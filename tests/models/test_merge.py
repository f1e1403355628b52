"""Merged weights are those of PEFT, whatever the model, the adapter's settings and the checkpoint's form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from arena_distill.data.records import CLASSES
from arena_distill.models import merged_tensors
from arena_distill.models.merge import merge_adapter
from arena_distill.models.safetensors_file import read_checkpoint
from arena_distill.runtime.errors import InputError
from tests.models.merge_cases import ATTENTION, assert_equal, load_whole, make_adapter, merged_by_peft, resaved

DECODERS = ("llama", "gemma2", "qwen2")
ENCODERS = {  # family -> (modules to adapt, modules of the head)
    "bert": (["query", "value"], ["pooler", "classifier"]),
    "distilbert": (["q_lin", "v_lin"], ["pre_classifier", "classifier"]),
    "deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"]),
}


# --- equal to PEFT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", ["one file", "many files"])
@pytest.mark.parametrize("family", DECODERS)
def test_merged_weights_are_those_of_peft(family: str, shards: str, backbones: Path, tmp_path: Path) -> None:
    base = backbones / family
    if shards == "many files":
        base = resaved(base, tmp_path / "base", max_shard_size="50KB")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    report = merge_adapter(str(base), adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(base, adapter))
    assert report.modules == 7 and report.zero_modules == 0 and not report.classifier
    layout = [
        {file: list(tensors) for file, tensors in read_checkpoint(place).files.items()}
        for place in (base, tmp_path / "out")
    ]
    assert layout[0] == layout[1] and (len(layout[0]) > 1) == (shards == "many files")
    if shards == "many files":
        index = "model.safetensors.index.json"
        assert json.loads((tmp_path / "out" / index).read_text()) == json.loads((base / index).read_text())
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 2, "model.layers.0.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 32, "^x": 1}},
        {"use_rslora": True, "r": 6, "rank_pattern": {r"layers\.\d+\.self_attn\.v_proj": 3}},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3, "layers_to_transform": [0]},
    ],
    ids=["patterns", "rank-stabilised", "tables", "tables-saved-whole", "one-layer"],
)
def test_every_kind_of_configuration_merges_as_in_peft(
    options: dict[str, Any], backbones: Path, tmp_path: Path
) -> None:
    options = {"target_modules": ["q_proj", "v_proj", "up_proj"], **options}
    adapter = make_adapter(backbones / "llama", tmp_path / "adapter", **options)
    merge_adapter(str(backbones / "llama"), adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(backbones / "llama", adapter))


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("base_dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_as_in_peft(
    base_dtype: str, adapter_dtype: str, backbones: Path, tmp_path: Path
) -> None:
    base = resaved(backbones / "llama", tmp_path / "base", dtype=getattr(torch, base_dtype))
    adapter = make_adapter(base, tmp_path / "adapter", dtype=adapter_dtype, target_modules=[*ATTENTION, "embed_tokens"])
    merge_adapter(str(base), adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(base, adapter))


def test_weights_stored_transposed_merge_as_in_peft(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    adapter = make_adapter(
        tmp_path / "gpt2", tmp_path / "adapter", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    merge_adapter(str(tmp_path / "gpt2"), adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(tmp_path / "gpt2", adapter))


def test_the_size_of_the_blocks_does_not_matter(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(backbones / "llama", tmp_path / "adapter", target_modules=["up_proj", "embed_tokens"])
    monkeypatch.setattr(merged_tensors, "BLOCK_ELEMENTS", 7 * 32)  # rows of 32: seven at a time
    merge_adapter(str(backbones / "llama"), adapter, tmp_path / "out")
    assert_equal(load_whole(tmp_path / "out").state_dict(), merged_by_peft(backbones / "llama", adapter), 1e-6)


@pytest.mark.parametrize(("out", "columns"), [(4096, 3584), (4096, 14336)])  # queries of Gemma-2-9B, down of Llama-3-8B
def test_no_block_is_a_row_left_over(out: int, columns: int) -> None:
    blocks = list(merged_tensors.row_blocks((out, columns)))
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])] and blocks[-1][1] == out
    sizes = [last - first for first, last in blocks]
    assert max(sizes) * columns <= merged_tensors.BLOCK_ELEMENTS
    assert max(sizes) - min(sizes) <= 1 < len(sizes)


def test_another_type_is_rounded_once_from_the_exact_sum(backbones: Path, tmp_path: Path) -> None:
    adapter = make_adapter(backbones / "llama", tmp_path / "adapter", target_modules=ATTENTION)
    expected = merged_by_peft(backbones / "llama", adapter)
    merge_adapter(str(backbones / "llama"), adapter, tmp_path / "out", dtype="bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert_equal(stored, {name: tensor.bfloat16() for name, tensor in expected.items()})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_wider_type_keeps_what_the_base_would_round_away(backbones: Path, tmp_path: Path) -> None:
    base = resaved(backbones / "llama", tmp_path / "base", dtype=torch.bfloat16)
    wide = resaved(base, tmp_path / "wide", dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)
    merge_adapter(str(base), adapter, tmp_path / "out", dtype="float32")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(wide, adapter))


# --- names and heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_a_head_over_a_causal_lm_makes_a_classifier(family: str, backbones: Path, tmp_path: Path) -> None:
    base = resaved(backbones / family, tmp_path / "base", max_shard_size="50KB", dtype=torch.bfloat16)
    adapter = make_adapter(
        base, tmp_path / "adapter", head=True, target_modules=[*ATTENTION, "embed_tokens"], modules_to_save=["score"]
    )
    report = merge_adapter(str(base), adapter, tmp_path / "out")
    model = load_whole(tmp_path / "out", head=True)
    assert_equal(dict(model.state_dict()), merged_by_peft(base, adapter, head=True))
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.label2id["tie"] == 2
    assert model.config.architectures == [type(model).__name__] and model.config.pad_token_id is not None
    assert report.classifier and report.replaced == ["model.embed_tokens.weight", "score.weight"]
    assert report.dropped == ([] if family == "gemma2" else ["lm_head.weight"])
    assert not (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize("form", ["classifier", "masked LM", "body"])
@pytest.mark.parametrize("family", ENCODERS)
def test_a_head_over_an_encoder_makes_a_classifier(family: str, form: str, backbones: Path, tmp_path: Path) -> None:
    base = backbones / family
    modules, head = ENCODERS[family]
    if form != "classifier":
        base = resaved(base, tmp_path / "base", auto=AutoModelForMaskedLM if form == "masked LM" else AutoModel)
    adapter = make_adapter(base, tmp_path / "adapter", head=True, target_modules=modules, modules_to_save=head)
    report = merge_adapter(str(base), adapter, tmp_path / "out", labels=["A", "B", "T"])
    model = load_whole(tmp_path / "out", head=True)
    assert_equal(dict(model.state_dict()), merged_by_peft(base, adapter, head=True))
    assert model.config.id2label == {0: "A", 1: "B", 2: "T"}
    assert bool(report.dropped) == (form == "masked LM")


def test_old_names_of_layer_norms_are_understood(backbones: Path, tmp_path: Path) -> None:
    modules, head = ENCODERS["bert"]
    adapter = make_adapter(
        backbones / "bert", tmp_path / "adapter", head=True, target_modules=modules, modules_to_save=head
    )
    base = shutil.copytree(backbones / "bert", tmp_path / "old")
    tensors = load_file(base / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    merge_adapter(str(base), adapter, tmp_path / "out")
    expected = merged_by_peft(backbones / "bert", adapter, head=True)
    assert_equal(dict(load_whole(tmp_path / "out", head=True).state_dict()), expected)


def test_an_adapter_of_a_classifier_without_a_head_of_its_own_stays_a_causal_lm(
    backbones: Path, tmp_path: Path
) -> None:
    """As teachers with label tokens are trained."""
    base = backbones / "gemma2"
    adapter = make_adapter(base, tmp_path / "adapter", head=True, target_modules=ATTENTION)
    (adapter / "label_tokens.json").write_text("{}")
    merge_adapter(str(base), adapter, tmp_path / "out")
    assert_equal(dict(load_whole(tmp_path / "out").state_dict()), merged_by_peft(base, adapter))
    assert (tmp_path / "out" / "label_tokens.json").is_file()


def test_a_body_without_prefix_takes_the_adapter_of_the_whole_model(backbones: Path, tmp_path: Path) -> None:
    adapter = make_adapter(backbones / "llama", tmp_path / "adapter", target_modules=ATTENTION)
    body = resaved(backbones / "llama", tmp_path / "body", auto=AutoModel)
    merge_adapter(str(body), adapter, tmp_path / "out")
    expected = merged_by_peft(backbones / "llama", adapter)
    found = {
        f"model.{name}": tensor for name, tensor in AutoModel.from_pretrained(tmp_path / "out").state_dict().items()
    }
    assert_equal(found, {name: tensor for name, tensor in expected.items() if name in found})


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": [*ATTENTION, "embed_tokens"]},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    ],
)
def test_a_change_of_one_of_two_tied_tables_is_refused(
    options: dict[str, Any], backbones: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(backbones / "gemma2", tmp_path / "adapter", **options)
    with pytest.raises(InputError, match="tie_word_embeddings"):
        merge_adapter(str(backbones / "gemma2"), adapter, tmp_path / "out")


def test_an_untied_copy_takes_changes_of_its_tables(backbones: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(backbones / "gemma2", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.save_pretrained(tmp_path / "untied")
    adapter = make_adapter(tmp_path / "untied", tmp_path / "adapter", target_modules=[*ATTENTION, "embed_tokens"])
    merge_adapter(str(tmp_path / "untied"), adapter, tmp_path / "out")
    found = dict(load_whole(tmp_path / "out").state_dict())
    assert_equal(found, merged_by_peft(tmp_path / "untied", adapter))
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
