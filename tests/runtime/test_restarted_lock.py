"""A job that Slurm has started again waits for its former self, which may hold the lock still."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arena_distill.runtime import artifacts
from arena_distill.runtime.artifacts import locked
from arena_distill.runtime.errors import ArenaError
from tests.conftest import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from arena_distill.runtime.artifacts import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def process(script: str, output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with the lock of ``output`` in mind."""
    command = [sys.executable, "-c", script, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as started:
        try:
            yield started
        finally:
            started.kill()


def line_of(started: subprocess.Popen[str]) -> str:
    """What it says next."""
    assert started.stdout is not None
    return started.stdout.readline()


def test_it_says_so_once_and_gets_the_lock_when_the_other_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(HOLD, tmp_path / "model") as former:
        assert line_of(former) == "held\n"
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with process(HOLD, tmp_path / "model") as again:
            assert "perhaps this job's former self" in line_of(again)
            former.kill()
            assert line_of(again) == "held\n"


def test_it_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifacts, "RESTARTED_WAIT_SECONDS", 0.2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with process(HOLD, tmp_path / "model") as other:
        assert line_of(other) == "held\n"
        with pytest.raises(ArenaError, match="another job"), locked(tmp_path / "model"):
            pass
    assert capsys.readouterr().out.count("\n") == 1
    with locked(tmp_path / "model"):
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("restarts", ["0", ""])
def test_a_first_start_does_not_wait_at_all(
    restarts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    with process(HOLD, tmp_path / "model") as other:
        assert line_of(other) == "held\n"
        with pytest.raises(ArenaError, match="another job"), locked(tmp_path / "model"):
            pass
    assert capsys.readouterr().out == ""
