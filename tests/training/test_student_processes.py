"""A distilled student that is killed, or trained by two processes, ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from arena_distill.data.loading import load_labelled
from tests.conftest import SAMPLE, is_json
from tests.training.distill_runs import teacher_logits
from tests.training.student_runs import REPOSITORY, arguments, quick_settings, run_mode, start
from tests.training.teacher_runs import manifest_of

WEIGHTS = "model.safetensors"

Settings = dict[str, object]


def logged(directory: Path, name: str) -> list[tuple[int, float]]:
    """A figure by its step in the course of a training."""
    entries = json.loads((directory / "training_log.json").read_text())
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


@pytest.fixture
def teachers(small_train_csv: Path, tmp_path: Path) -> Settings:
    """Two teachers, one with a say on half of the rows, and a temperature that falls while the student is trained."""
    rows = load_labelled(small_train_csv).rows
    files: list[Path] = []
    for name, logits in teacher_logits(rows).items():
        if files:
            logits[::2] = np.nan
        files.append(tmp_path / f"{name}.npy")
        np.save(files[-1], logits)
    return {
        "distill_teachers": f"{files[0]},{files[1]}",
        "distill_alpha": 0.8,
        "distill_mse_weight": 0.5,
        "distill_temp_schedule": "linear:5,2",
        "student_extra_csvs": SAMPLE / "ultrafeedback_ties.csv",
        "student_swap_augment": True,
        "student_early_stopping": 0,
        "cv_num_folds": 3,
        "cv_fold_idx": 1,
    }


@pytest.mark.slow
def test_after_sigkill_the_same_command_ends_with_the_same_student(
    backbones: Path, small_train_csv: Path, teachers: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order would be other weights

    def settings(name: str) -> Settings:
        quick = quick_settings(small_train_csv, backbones / "bert", tmp_path / f"{name}_fold_1") | teachers
        return quick | {"student_save_steps": 3, "student_epochs": 1}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_mode("student-distill-train", **settings("whole"))
    torch.set_num_threads(threads)
    killed = tmp_path / "killed_fold_1"
    process = start("student-distill-train", **settings("killed"))
    deadline = time.monotonic() + 120
    while not any(map(is_json, tmp_path.glob(".killed_fold_1.partial-*/training/checkpoint-*/trainer_state.json"))):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists(), "the run ended before it was killed"
    again = start("student-distill-train", **settings("killed"))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "going on from checkpoint-" in output
    assert (killed / WEIGHTS).read_bytes() == (tmp_path / "whole_fold_1" / WEIGHTS).read_bytes()
    for figure in ("grad_norm", "eval_log_loss"):  # the best weights may be older than the kill: these are not
        before, after = (logged(directory, figure) for directory in (tmp_path / "whole_fold_1", killed))
        assert after == before and len(after) >= 4, figure
    one, two = (manifest_of(tmp_path / f"{name}_fold_1") for name in ("whole", "killed"))
    assert one["metrics"] == two["metrics"] and one["initial_sha256"] == two["initial_sha256"]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def by_torchrun(settings: Settings) -> tuple[int, str]:
    """Exit code and output of ``torchrun --nproc-per-node=2 main.py --mode student-distill-train …``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(REPOSITORY / "main.py"), *arguments("student-distill-train", **settings)]
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_two_processes_train_the_student_that_one_trains(
    backbones: Path, small_train_csv: Path, teachers: Settings, tmp_path: Path
) -> None:
    def settings(name: str, processes: int) -> Settings:
        # Without dropout, of which each process would draw its own; of a number of rows that eight does not divide.
        quick = quick_settings(small_train_csv, backbones / "llama", tmp_path / f"{name}_fold_1") | teachers
        rows = {"student_extra_csvs": "", "student_max_samples": 41}
        return quick | rows | {"student_train_batch_size": 8 // processes, "student_max_length": 48}

    run_mode("student-distill-train", **settings("one", 1))
    code, printed = by_torchrun(settings("two", 2))
    assert code == 0, printed
    for line in (": trained in", "distillation  ", "parameters, "):
        assert printed.count(line) == 1, f"one process speaks for both: {line}\n{printed}"
    one, two = tmp_path / "one_fold_1", tmp_path / "two_fold_1"
    first, second = ([loss for _, loss in logged(directory, "loss")] for directory in (one, two))
    assert len(first) >= 8 and max(first) - min(first) > 1e-2, (
        "nothing changes: the curves would agree whatever happens"
    )
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)
    weights, others = (load_file(directory / WEIGHTS) for directory in (one, two))
    for name, tensor in weights.items():
        np.testing.assert_allclose(others[name], tensor, rtol=0, atol=1e-5, err_msg=name)
    found, other = manifest_of(one), manifest_of(two)
    assert (found["processes"], other["processes"]) == (1, 2)
    assert found["initial_sha256"] == other["initial_sha256"]
    assert found["rows"] == other["rows"]
