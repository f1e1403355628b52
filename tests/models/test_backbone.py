"""Which model a name means: never a hub name by mistake, and other weights never pass for the same ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arena_distill.models.backbone import SMALL_FILE, check_backbone, local_directory, model_identity
from arena_distill.runtime.errors import InputError


@pytest.mark.parametrize("name", ["bert-base-uncased", "meta-llama/Meta-Llama-3-70B-Instruct", "Qwen/Qwen2-72B"])
def test_hub_names_pass_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_backbone(name, "LLAMA_BASE") == name


@pytest.mark.parametrize(
    "name", ["/nowhere/model", "./model", "../model", "~/no-such-model", "models/llama/final", "models/gone", "file"]
)
def test_a_path_to_nothing_is_refused_with_the_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("no model")
    with pytest.raises(InputError, match=f"LLAMA_BASE={name}: no such model directory"):
        check_backbone(name, "LLAMA_BASE")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"LLAMA_BASE=.*no config\.json"):
        check_backbone(str(tmp_path), "LLAMA_BASE")


def test_a_home_directory_is_expanded(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(backbones))
    assert check_backbone("~/llama", "LLAMA_BASE") == str(backbones / "llama")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "nobody"])
def test_a_hub_name_that_is_not_to_be_had_is_named_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: not on this machine") as caught:
        local_directory(name)
    assert "\n" not in str(caught.value)


def test_a_copy_elsewhere_is_the_same_model_and_its_tokenizer_does_not_count(backbones: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(backbones / "llama", tmp_path / "copy")
    before = model_identity(str(backbones / "llama"))
    assert model_identity(str(copy)) == before
    (copy / "README.md").write_text("about")
    assert model_identity(str(copy)) == before


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_other_weights_or_another_config_are_another_model(file: str, backbones: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(backbones / "llama", tmp_path / "copy")
    changed = bytearray((copy / file).read_bytes())
    changed[-3] ^= 1
    (copy / file).write_bytes(changed)
    assert model_identity(str(copy)) != model_identity(str(backbones / "llama"))


def test_training_changes_the_identity_of_a_model_too_large_to_be_hashed_whole(tmp_path: Path) -> None:
    model = {f"layer{n}": torch.full((1 << 20,), 1.0) for n in range(20)}  # 80 MB
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"

    def identity() -> str:
        return model_identity(str(tmp_path))

    save_file(model, file)
    assert file.stat().st_size > SMALL_FILE
    before = identity()
    os.utime(file, (0, 0))
    assert identity() == before, "the time of a file says nothing about its weights"
    save_file({name: tensor + 1e-6 for name, tensor in load_file(file).items()}, file)
    assert identity() != before, "every weight is another"
    save_file({f"other{name}": tensor for name, tensor in model.items()}, file)
    assert identity() != before, "the same numbers under other names"
    save_file(model, file)
    assert identity() == before
    with file.open("ab") as stream:
        stream.write(b"\0")
    assert identity() != before, "another size"
