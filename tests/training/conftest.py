"""One short student that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.student_runs import quick_settings, run_mode


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path) -> dict[str, object]:
    """Settings of a BERT student that has been trained and calibrated."""
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path_factory.mktemp("student") / "bert")
    run_mode("student-train", **settings)
    run_mode("student-calibrate", **settings)
    return settings
