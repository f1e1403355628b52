"""Made-up students, and one finished run of step 6 on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conversion.average_runs import average, copy_of, make_students, quick


@pytest.fixture(scope="session")
def fold_students(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> Path:
    """A directory with the Llama students of three folds; not to be changed."""
    return make_students(tmp_path_factory.mktemp("average") / "root", backbones / "llama", small_train_csv)


@pytest.fixture(scope="session")
def averaged(tmp_path_factory: pytest.TempPathFactory, fold_students: Path, small_test_csv: Path) -> Path:
    """The same after step 6; not to be changed."""
    root = copy_of(fold_students, tmp_path_factory.mktemp("averaged") / "root")
    average(quick(root, small_test_csv))
    return root


@pytest.fixture
def root(fold_students: Path, tmp_path: Path) -> Path:
    """A copy of the students that a test may change."""
    return copy_of(fold_students, tmp_path / "root")
