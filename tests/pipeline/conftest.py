"""Fixtures of the orchestrator's tests: a profile with which every stage takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.small_run import write_profile


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a developer has exported must not reach the tests, nor what one test's command line says the next."""
    from arena_distill.runtime.settings import known_variables

    before = dict(os.environ)
    for name in (*known_variables(), "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)  # by it, which has the last word, and forgets what it did not see go
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def profile(tmp_path: Path, backbones: Path, small_train_csv: Path, small_test_csv: Path) -> Path:
    """Settings of a run over two folds, in ``tmp_path/out``."""
    return write_profile(tmp_path / "small.env", tmp_path / "out", backbones, small_train_csv, small_test_csv)
