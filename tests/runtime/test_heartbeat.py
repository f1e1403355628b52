"""The heartbeat says how far the work is and what a requeue would keep, and never stands in its way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from arena_distill.runtime import heartbeat
from arena_distill.runtime.artifacts import publish
from arena_distill.runtime.errors import run_command
from arena_distill.runtime.heartbeat import HEARTBEAT_FILE
from arena_distill.runtime.progress import Progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the heartbeat goes; a process that begins now."""
    path = tmp_path / "progress" / "step3_train_teachers_fold_1.json"
    monkeypatch.setenv(HEARTBEAT_FILE, str(path))
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    begin_anew(monkeypatch)
    return path


def begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows of earlier ones: nothing but the file."""
    monkeypatch.setattr(heartbeat, "_of_process", None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def said(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return document


def test_it_says_all_that_was_promised(file: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"JOB_ID": "124", "ARRAY_JOB_ID": "123", "ARRAY_TASK_ID": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    began = time.time()
    with Progress("training", 100, rows_before=20, rows_per_step=10) as progress:
        first = said(file)
        assert (first["done"], first["seconds_left"], first["saved"]) == (2, None, 0)
        clock[0] += 4
        progress.update(20, 600)
        document = said(file)
    updated, started = document.pop("updated"), document.pop("started")
    assert began <= started <= updated <= time.time()
    assert document == {
        "task": "training",
        "done": 4,
        "total": 10,
        "unit": "steps",
        "rows_per_second": 5.0,
        "tokens_per_second": 150.0,
        "seconds_left": 12.0,
        "saved": 0,
        "pid": os.getpid(),
        "node": "n2",
        "job_id": "123",
        "array_task": "1",
    }


def test_it_is_written_every_two_seconds_and_at_the_end(file: Path, clock: list[float]) -> None:
    with Progress("scoring", 10, "sequences") as progress:
        progress.update(1)
        assert said(file)["done"] == 0
        clock[0] += 1.9
        progress.update(1)
        assert said(file)["done"] == 0
        clock[0] += 0.2
        progress.update(1)
        assert said(file)["done"] == 3
        progress.update(1)
    assert said(file)["done"] == 4
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_is_kept_grows_over_tasks_and_over_processes(
    file: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first() -> None:
        with Progress("training", 10):
            heartbeat.keep(7)
        with Progress("scoring", 10):
            heartbeat.keep(1)

    run_command(first)
    assert said(file)["saved"] == 8
    begin_anew(monkeypatch)
    with Progress("training", 10):
        assert said(file)["saved"] == 8, "the next process goes on counting"

    def fails() -> None:
        heartbeat.keep(2)
        heartbeat.keep(0)
        raise KeyboardInterrupt

    begin_anew(monkeypatch)
    run_command(fails)
    assert said(file)["saved"] == 10, "whatever became of the worker, its last word is written"


def test_a_published_output_is_kept(file: Path, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    publish(tmp_path / "partial", tmp_path / "final")
    heartbeat.flush()
    assert said(file)["saved"] == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"saved": "many"}', '{"saved": null}', "{}", "\udcff"])
def test_a_damaged_file_counts_as_none(content: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(content, "utf-8", errors="surrogateescape")
    with Progress("training", 10):
        heartbeat.keep(1)
    assert said(file)["saved"] == 1


def test_a_heartbeat_that_cannot_be_written_is_left_out(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.write_text("a file where a directory should be")
    with Progress("training", 10) as progress:
        progress.update(10)
        heartbeat.keep(1)
    assert capsys.readouterr().err == ""
    file.parent.unlink()
    file.mkdir(parents=True)
    with Progress("training", 10) as progress:
        progress.update(10)
    assert capsys.readouterr().err == "" and [path.name for path in file.parent.iterdir()] == [file.name]


def test_of_several_processes_one_has_a_heartbeat(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Progress("training", 10) as progress:
        progress.update(10)
    assert not file.exists()
    monkeypatch.setenv("RANK", "0")
    with Progress("training", 10) as progress:
        progress.update(10)
    assert said(file)["done"] == 10


def test_without_the_variable_nothing_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HEARTBEAT_FILE)
    with Progress("training", 10) as progress:
        progress.update(10)
        heartbeat.keep(1)
    assert not file.parent.exists()
