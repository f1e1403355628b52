"""Progress counts what was done and stays silent for short tasks."""

from __future__ import annotations

import pytest

from arena_distill.runtime import progress as progress_module
from arena_distill.runtime.progress import Progress


def test_rates_count_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, *[105.0] * 10])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    progress = Progress("task", 1000)
    progress.rows, progress.tokens = 10, 150
    assert (progress.rows_per_second, progress.tokens_per_second) == (2.0, 30.0)


def test_a_short_task_prints_nothing_to_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("task", 1) as progress:
        progress.update(1, 1)
    assert capsys.readouterr().err == ""


def test_a_long_task_prints_share_rates_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "FIRST_LINE_SECONDS", 0.0)
    with Progress("task", 4) as progress:
        progress.update(1, 10)
    first, last = capsys.readouterr().err.splitlines()
    assert "task:  25 %" in first and "rows/s" in first and "tokens/s" in first and "left" in first
    assert last.startswith("task: 1 rows in")
