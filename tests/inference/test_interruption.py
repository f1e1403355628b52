"""Scoring that a signal stops ends after a whole batch, keeps it, and goes on to the bytes of a run in one piece."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_distill.inference.judge import ClassifierJudge
from arena_distill.runtime.errors import EXIT_REQUEUE, run_command
from arena_distill.runtime.heartbeat import HEARTBEAT_FILE
from tests.conftest import SAMPLE
from tests.inference import oof_runs, predict_runs
from tests.inference.oof_runs import copy_of, logits_dir

ONE_BY_ONE = {"infer_batch_tokens": 16}  # fewer than any sequence has: every batch holds one
STOPPED = "stopped on a signal; what is finished is kept, and the same command goes on from there"


def done(part: Path) -> np.ndarray:
    """Which sequences have all their values, bool ``[S]``."""
    try:
        return np.isfinite(np.load(part, mmap_mode="r")).all(axis=1)
    except (OSError, ValueError):  # it is only being made
        return np.zeros(0, bool)


def stop(process: subprocess.Popen[str], number: signal.Signals, parts: Callable[[], Iterator[Path]]) -> str:
    """Send a signal once a few sequences are scored and most are not; what the process printed."""
    deadline = time.monotonic() + 120
    while not any(5 <= done(part).sum() < len(done(part)) // 2 for part in parts()):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE, output
    assert output.count(STOPPED) == 1 and "Traceback" not in output, output
    assert "interrupted; the same command goes on where it stopped" in output
    return output


def test_step_4_stopped_with_sigterm_scores_what_is_missing_and_ends_with_the_same_bytes(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, root = (copy_of(teachers, tmp_path / name, logits=False) for name in ("whole", "root"))
    settings: dict[str, Any] = {**ONE_BY_ONE, "infer_models": "llama", "infer_folds": 0}
    oof_runs.infer(whole, **settings)
    monkeypatch.setenv(HEARTBEAT_FILE, str(tmp_path / "beat.json"))
    process = oof_runs.start_infer(root, **settings)
    stop(process, signal.SIGTERM, lambda: logits_dir(root).glob(".*.partial-*/shard_*.npy"))
    (part,) = logits_dir(root).glob(".*.partial-*/shard_*.npy")
    there, all_of_them = int(done(part).sum()), len(done(part))
    said = json.loads((tmp_path / "beat.json").read_text("utf-8"))
    assert (said["task"], said["done"], said["total"]) == ("scoring", there, all_of_them)
    assert said["saved"] == there, "each batch holds one"
    assert run_command(lambda: oof_runs.infer(root, **settings)) == 0
    assert f"going on, {there} of {all_of_them} batches are there" in capsys.readouterr().out
    assert oof_runs.results(root) == oof_runs.results(whole)
    assert json.loads((tmp_path / "beat.json").read_text("utf-8"))["saved"] == all_of_them + 1


def test_step_8_stopped_with_sigusr1_scores_what_is_missing_and_ends_with_the_same_bytes(
    students: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, root = (tmp_path / name for name in ("whole", "root"))
    whole.mkdir()
    root.mkdir()
    test = {"test_csv": SAMPLE / "test.csv", "labels_csv": "none"}
    settings = {"model_dir": students / "llama_lora", "predict_batch_tokens": 1, "tta_lengths": "64,160", **test}
    predict_runs.infer(whole, **settings)
    process = predict_runs.start_infer(root, **settings)
    stop(process, signal.SIGUSR1, lambda: root.glob(".out.csv.partial-*/shard_*.npy"))
    (part,) = root.glob(".out.csv.partial-*/shard_*.npy")
    there, all_of_them = int(done(part).sum()), len(done(part))
    capsys.readouterr()
    predict_runs.infer(root, **settings)
    assert f"going on, {there:,} of {all_of_them:,} batches are there" in capsys.readouterr().out
    assert predict_runs.results(root) == predict_runs.results(whole)
    assert not predict_runs.hidden(root)


def test_the_batch_at_hand_is_finished_first_and_a_requeued_job_does_not_do_it_again(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(teachers, tmp_path / "root", logits=False)
    forward, passes = ClassifierJudge._forward, itertools.count(1)

    def signal_in_the_tenth(judge: ClassifierJudge, *rest: Any) -> np.ndarray:
        if next(passes) == 10:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(judge, *rest)

    monkeypatch.setattr(ClassifierJudge, "_forward", signal_in_the_tenth)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    settings: dict[str, Any] = {**ONE_BY_ONE, "infer_models": "llama", "infer_folds": 0, "infer_save_lasttok": True}
    again = settings | {"infer_force_regen": True}
    assert run_command(lambda: oof_runs.infer(root, **again)) == EXIT_REQUEUE
    (part,) = logits_dir(root).glob(".*.partial-*/shard_*.npy")
    assert done(part).sum() == 10
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capsys.readouterr()
    for says in ("going on, 10 of", "up to date"):
        oof_runs.infer(root, **again)
        assert says in capsys.readouterr().out
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    oof_runs.infer(root, **again)
    assert "scoring fold 0" in capsys.readouterr().out
