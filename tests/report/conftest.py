"""A finished run, made once, and copies of it to spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arena_distill.report.report_settings import ReportSettings
from arena_distill.report.report_stage import write_report
from tests.report.finished_run import FinishedRun, make_finished_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Not to be changed."""
    return make_finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def spoilt(finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy that a test may change."""
    return finished.copy(tmp_path / "run")


def report_of(made: FinishedRun, **settings: Any) -> dict[str, Any]:
    """Write the report of a run and read its data."""
    chosen = ReportSettings(output_dir=made.root, run=made.run, **settings)
    write_report(chosen)
    return dict(json.loads(chosen.page.with_suffix(".json").read_text("utf-8")))
