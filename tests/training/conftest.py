"""One short student that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.distill_runs import copy_of, distill, make_root, quick
from tests.training.student_runs import quick_settings, run_mode


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> dict[str, object]:
    """Settings of a BERT student that has been trained and calibrated."""
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path_factory.mktemp("student") / "bert")
    run_mode("student-train", **settings)
    run_mode("student-calibrate", **settings)
    return settings


# Step 5


@pytest.fixture(scope="session")
def distill_root(tmp_path_factory: pytest.TempPathFactory, small_train_csv: Path) -> Path:
    """A directory with data, folds and an out-of-fold table of two teachers; not to be changed."""
    return make_root(tmp_path_factory.mktemp("distill") / "root", small_train_csv)


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory, distill_root: Path, backbones: Path) -> Path:
    """The same with finished Llama students of folds 0 and 1; not to be changed."""
    root = copy_of(distill_root, tmp_path_factory.mktemp("students") / "root")
    distill(quick(root, backbones / "llama", student_folds="0,1"))
    return root
