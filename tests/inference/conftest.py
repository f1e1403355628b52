"""Two families of very small teachers, trained once, and what step 4 makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.inference.oof_runs import FAMILIES, copy_of, infer, make_folds, train
from tests.inference.predict_runs import KINDS, make_student


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> Path:
    """A directory with data, folds, bases and the teachers of both families; not to be changed."""
    root = tmp_path_factory.mktemp("teachers")
    shutil.copyfile(small_train_csv, root / "train.csv")
    for family in FAMILIES:
        _copy_with_large_logits(backbones / family, root / "bases" / family)
    make_folds(root)
    train(
        root,
        llama_ft_base=root / "bases" / "llama",
        llama_name="llama",
        qwen_ft_base=root / "bases" / "qwen2",
        qwen_name="qwen2",
    )
    return root


def _copy_with_large_logits(base: Path, into: Path) -> None:
    """As a trained model's; those of a random one hardly differ from row to row, and neither would a wrong row's."""
    shutil.copytree(base, into)
    weights = load_file(into / "model.safetensors")
    weights["lm_head.weight"] *= 50
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, teachers: Path) -> Path:
    """The same after one run of step 4 in one piece; not to be changed."""
    root = copy_of(teachers, tmp_path_factory.mktemp("scored") / "root", logits=False)
    infer(root)
    return root


# Step 8


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory, backbones: Path) -> Path:
    """FAMILY_KIND: finished, calibrated students; not to be changed."""
    root = tmp_path_factory.mktemp("students")
    for kind in KINDS:
        make_student(root / f"llama_{kind}", backbones / "llama", kind, seed=1)
    make_student(root / "bert_plain", backbones / "bert", "plain", seed=2)
    return root
