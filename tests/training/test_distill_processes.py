"""Step 5 by two processes is step 5 by one; and its script takes the fold from ``FOLD`` or from the array task."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.training.distill_runs import ADAPTER, SCRIPT, assert_same_weights, distill, quick, student_dir
from tests.training.teacher_runs import contents, manifest_of, run_script

# Two processes


def _losses(directory: Path) -> list[float]:
    log = json.loads((directory / "training_log.json").read_text("utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_two_processes_train_the_student_that_one_trains(distill_root: Path, backbones: Path, tmp_path: Path) -> None:
    """Eight rows a step, whoever computes them; an epoch of a number of rows that eight does not divide."""
    settings: dict[str, Any] = {
        "student_max_steps": 0,
        "student_epochs": 1,
        "student_save_steps": 6,
        "student_grad_accum": 2,
        "student_swap_augment": True,
        "student_mse_weight": 0.5,
        "student_lora_dropout": 0.0,
        "student_lr": 1e-3,
    }
    distill(quick(distill_root, backbones / "llama", tmp_path / "one", **settings, student_per_device_bs=4))
    both = quick(distill_root, backbones / "llama", tmp_path / "two", **settings, student_per_device_bs=2)
    code, printed = run_script(SCRIPT, processes=2, **both)
    assert code == 0, printed
    assert printed.count("parameters, ") == 1 and printed.count(": trained in") == 1, "one speaks for both"

    one, two = student_dir(tmp_path / "one"), student_dir(tmp_path / "two")
    first, second = _losses(one), _losses(two)
    assert len(first) >= 4
    assert max(first) - min(first) > 1e-3, "nothing changes: the curves would agree whatever happened"
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)
    assert_same_weights(one / ADAPTER, two / ADAPTER, atol=1e-5)
    found, other = manifest_of(one), manifest_of(two)
    assert (found["processes"], other["processes"]) == (1, 2)
    assert found["teachers"] == other["teachers"] and found["rows"] == other["rows"]
    assert found["initial_sha256"] == other["initial_sha256"]
    for name in ("held_out", "held_out_uncalibrated"):
        loss, same = (manifest["metrics"][name]["log_loss"] for manifest in (found, other))
        assert loss == pytest.approx(same, abs=1e-5)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert not [path for path in two.parent.iterdir() if "partial" in path.name]

    before = contents(tmp_path / "two")
    distill(both)  # by one process: finished is finished
    assert contents(tmp_path / "two") == before


# The script


def run_stage(settings: dict[str, Any], *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``bash step5_distill_student.sh`` with ``settings`` as environment variables."""
    variables = {
        name.upper(): str(int(value) if isinstance(value, bool) else value) for name, value in settings.items()
    }
    del variables["STUDENT_FOLDS"]
    own = {name: value for name, value in os.environ.items() if name != "FOLD" and not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", str(REPOSITORY / "step5_distill_student.sh"), *flags],
        capture_output=True,
        text=True,
        env={**own, "PROCESSES_PER_NODE": "1", "OMP_NUM_THREADS": "1", **variables, **environment},
    )


def _students(output: Path) -> set[str]:
    names = {path.name for path in (output / "model_save").iterdir() if not path.name.startswith(".")}
    return names - {"pipeline"}  # the scripts' progress


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "fold"),
    [({"FOLD": "1"}, 1), ({"SLURM_ARRAY_TASK_ID": "2"}, 2)],
    ids=["FOLD", "array task"],
)
def test_the_script_trains_the_fold_that_it_is_given_and_no_other(
    environment: dict[str, str], fold: int, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    settings = quick(distill_root, backbones / "llama", tmp_path, student_max_steps=1, student_save_steps=1)
    done = run_stage(settings, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"distil the student of fold {fold}" in done.stdout
    assert _students(tmp_path) == {student_dir(tmp_path, fold).name}
    assert manifest_of(student_dir(tmp_path, fold))["fold"] == fold


def test_the_script_without_a_fold_takes_all_of_them(students: Path, backbones: Path) -> None:
    """Folds 0 and 1 are finished; a table that is gone stops it before the third."""
    before = contents(students)
    done = run_stage(quick(students, backbones / "llama", infer_oof_table=students / "gone.parquet"))
    assert done.returncode == 3
    assert "gone.parquet" in done.stderr and "stopped with exit code 3" in done.stdout
    done = run_stage(quick(students, backbones / "llama", resume_checkpoint=students / "checkpoint-2"))
    assert done.returncode == 2
    assert "belongs to one fold" in done.stderr, "it was given all of them"
    assert contents(students) == before


@pytest.mark.parametrize(
    ("flags", "folds"),
    [([], [0]), (["--student-folds", "0,1"], [0, 1])],
    ids=["FOLD beats the array", "flags beat all"],
)
def test_what_names_the_fold_first_counts(flags: list[str], folds: list[int], students: Path, backbones: Path) -> None:
    before = contents(students)
    done = run_stage(quick(students, backbones / "llama"), *flags, FOLD="0", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.partition(": up to date")[0] for line in done.stdout.splitlines() if ": up to date" in line]
    assert found == [str(student_dir(students, fold)) for fold in folds]
    assert contents(students) == before
