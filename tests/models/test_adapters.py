"""Adapters: what they train, and that none is ever put on a base it does not belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from arena_distill.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    add_lora,
    base_of_adapter,
    load_adapter,
    nf4_config,
)
from arena_distill.models.architecture import LINEAR_MODULES
from arena_distill.models.backbone import model_identity
from arena_distill.models.classifier import HEAD_MODULES, load_classifier, load_tokenizer
from arena_distill.models.merge import check_base
from arena_distill.runtime.artifacts import write_manifest
from arena_distill.runtime.errors import InputError

FAMILIES = ("bert", "distilbert", "deberta-v2", "llama", "qwen2", "gemma2")
LORA: dict[str, Any] = {"r": 2, "alpha": 4, "dropout": 0.0}


def _classifier(base: Path, **options: Any) -> Any:
    return load_classifier(str(base), load_tokenizer(str(base)), **options)[0]


def _saved(base: Path, directory: Path, train_head: bool = True) -> Path:
    """An adapter with random factors and, if trained, a random head."""
    torch.manual_seed(0)
    model = add_lora(_classifier(base), base=str(base), train_head=train_head, **LORA)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_factors_and_if_asked_for_the_head_train_in_full_precision(
    family: str, train_head: bool, backbones: Path
) -> None:
    model = add_lora(
        _classifier(backbones / family, dtype=torch.bfloat16), base=str(backbones), train_head=train_head, **LORA
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in trained if "modules_to_save" in name}
    assert trained and all("lora_" in name for name in trained.keys() - heads)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    own_head = {part for name in heads for part in name.split(".")} & set(HEAD_MODULES)
    assert bool(own_head) is train_head
    assert not {part for name in trained.keys() - heads for part in name.split(".")} & set(HEAD_MODULES)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_decoder_is_adapted_at_its_seven_projections(family: str, backbones: Path) -> None:
    model = add_lora(_classifier(backbones / family), base=str(backbones), train_head=False, **LORA)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == set(LINEAR_MODULES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_comes_back_with_its_trained_head_here_and_in_plain_peft(
    family: str, backbones: Path, tmp_path: Path
) -> None:
    base = backbones / family
    _saved(base, tmp_path)
    torch.manual_seed(1)  # a new head drawn at load time would be another one
    ours = load_adapter(_classifier(base), tmp_path).eval()
    torch.manual_seed(2)
    plain: Any = PeftModel.from_pretrained(_classifier(base), str(tmp_path)).eval()
    saved = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert any(name.rpartition(".")[0].rpartition(".")[2] in HEAD_MODULES for name in saved)
    batch = {"input_ids": torch.arange(5, 17).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.inference_mode():
        torch.testing.assert_close(ours(**batch).logits, plain(**batch).logits, rtol=0, atol=0)


# An adapter on the wrong base, or a damaged one


def test_an_adapter_of_another_architecture_is_refused_by_name(backbones: Path, tmp_path: Path) -> None:
    adapter = _saved(backbones / "qwen2", tmp_path / "adapter")
    with pytest.raises(InputError, match=r"adapter.*(another base|cannot be loaded)"):
        load_adapter(_classifier(backbones / "bert"), adapter)


def test_an_adapter_with_factors_of_other_sizes_is_refused_by_name(backbones: Path, tmp_path: Path) -> None:
    adapter = _saved(backbones / "llama", tmp_path / "adapter")
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    name = next(name for name in weights if "q_proj.lora_A" in name)
    weights[name] = torch.zeros(2, 48)
    save_file(weights, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="adapter: this adapter belongs to another base model"):
        load_adapter(_classifier(backbones / "llama"), adapter)


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_an_adapter_with_missing_or_surplus_factors_is_refused(change: str, backbones: Path, tmp_path: Path) -> None:
    adapter = _saved(backbones / "llama", tmp_path / "adapter")
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    name = next(name for name in weights if "q_proj.lora_A" in name)
    if change == "missing":
        del weights[name]
    else:
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
    save_file(weights, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="q_proj"):
        load_adapter(_classifier(backbones / "llama"), adapter)


@pytest.mark.parametrize("file", [ADAPTER_WEIGHTS, ADAPTER_CONFIG])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_adapter_is_refused_by_name(file: str, damage: str, backbones: Path, tmp_path: Path) -> None:
    adapter = _saved(backbones / "llama", tmp_path / "adapter")
    whole = (adapter / file).read_bytes()
    (adapter / file).unlink() if damage == "gone" else (adapter / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="adapter"):
        base_of_adapter(adapter)
        load_adapter(_classifier(backbones / "llama"), adapter)


def test_the_base_stands_in_the_adapter_as_an_absolute_path(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(backbones)
    model = add_lora(_classifier(Path("llama")), base="llama", train_head=False, **LORA)
    model.save_pretrained(tmp_path)
    assert base_of_adapter(tmp_path) == str((backbones / "llama").resolve())


def test_a_base_whose_weights_have_changed_since_is_refused(backbones: Path, tmp_path: Path) -> None:
    base = shutil.copytree(backbones / "llama", tmp_path / "base")
    adapter = _saved(base, tmp_path / "adapter")
    identity = {"base_model": model_identity(str(base))}
    write_manifest(adapter, stage="test", settings={}, inputs=identity, started=0.0)
    check_base(adapter, str(base))
    check_base(adapter, str(backbones / "llama"))  # the same weights elsewhere are the same base
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="another base"):
        check_base(adapter, str(base))


def test_an_adapter_trained_on_a_hub_name_goes_on_a_local_copy_of_that_model(backbones: Path, tmp_path: Path) -> None:
    """A name and a directory cannot be compared; merging lets them pass as well."""
    adapter = _saved(backbones / "llama", tmp_path / "adapter")
    write_manifest(adapter, stage="test", settings={}, inputs={"base_model": "meta-llama/Llama-3.2-1B"}, started=0.0)
    check_base(adapter, str(backbones / "llama"))
    with pytest.raises(InputError, match="another base"):
        check_base(adapter, "Qwen/Qwen2-7B")


def test_an_adapter_that_names_no_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"r": 4}))
    with pytest.raises(InputError, match=ADAPTER_CONFIG):
        base_of_adapter(tmp_path)


def test_four_bit_weights_leave_every_head_as_it_is(backbones: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    model = _classifier(
        backbones / "llama",
        dtype=torch.float32,
        quantization_config=nf4_config(torch.float32),
        device_map={"": "cpu"},
    )
    quantized = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == set(LINEAR_MODULES)
    assert type(model.score) is torch.nn.Linear
