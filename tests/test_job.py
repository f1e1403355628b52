"""job.sh does the whole student path under plain bash, from any directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from arena_distill.data.loading import load_test
from arena_distill.evaluation.submission import read_submission
from tests.conftest import REPOSITORY


def run_job(tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / "job.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})


@pytest.mark.slow
def test_job_ends_with_a_valid_submission(
    backbones: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    done = run_job(
        tmp_path,
        TRAIN_CSV=str(small_train_csv),
        TEST_CSV=str(small_test_csv),
        OUTPUT_DIR=str(tmp_path),
        RUN="baseline",
        STUDENT_MODEL=str(backbones / "bert"),
        STUDENT_MAX_LENGTH="64",
        STUDENT_EPOCHS="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ids, _ = read_submission(tmp_path / "sub" / "baseline_student_submission.csv")
    assert ids == load_test(small_test_csv).rows["id"].to_pylist()
    assert (tmp_path / "model_save" / "baseline" / "student_distilbert" / "calibration.json").is_file()


def test_job_stops_at_the_first_failing_step_with_its_exit_code(tmp_path: Path) -> None:
    done = run_job(
        tmp_path, TRAIN_CSV="nowhere.csv", STUDENT_MODEL=str(REPOSITORY / "gone" / "model"), OUTPUT_DIR=str(tmp_path)
    )
    assert done.returncode == 3
    assert "calibrate" not in done.stdout
    assert "stopped with exit code 3" in done.stdout


def test_job_refuses_an_unknown_flag(tmp_path: Path) -> None:
    done = run_job(tmp_path, "--student-epoch", "3")
    assert done.returncode == 2
    assert "did you mean --student-epochs?" in done.stderr
