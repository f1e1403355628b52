"""Step 9's ensemble: which of a run's submissions it takes, by its settings; tests/test_step9.py has the whole step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arena_distill.evaluation.ensemble_settings import EnsembleSettings
from arena_distill.evaluation.run_ensemble import ensemble_of_run
from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.settings import parse_settings
from tests.conftest import REPOSITORY

IDS = ["a", "b", "c"]


def settings(*flags: str) -> EnsembleSettings:
    return parse_settings(EnsembleSettings, flags, program="ensemble_run.py", description="")


def predicts(path: Path, seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).dirichlet(np.ones(3), size=len(IDS))
    write_submission(path, IDS, p)
    return p


@pytest.mark.parametrize(
    ("environment", "flags", "weights"),
    [
        ({}, (), "equal"),
        ({"USE_WEIGHTED": "1"}, (), "auto"),
        ({"USE_WEIGHTED": "yes"}, (), "auto"),
        ({"USE_WEIGHTED": "0"}, (), "equal"),
        ({"USE_WEIGHTED": "1"}, ("--no-use-weighted",), "equal"),
        ({"USE_WEIGHTED": "1"}, ("--weights", "inverse"), "inverse"),
        ({"ENSEMBLE_WEIGHTS": "inverse"}, (), "inverse"),
    ],
)
def test_how_folds_count_is_said_by_variable_or_flag(
    environment: dict[str, str], flags: tuple[str, ...], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings(*flags).weights == weights


def test_a_weighting_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_WEIGHTED", "sometimes")
    with pytest.raises(SettingsError, match=r"USE_WEIGHTED.*sometimes"):
        settings()


def test_step_8s_submission_is_taken_before_a_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sub = tmp_path / "sub"
    student = predicts(sub / "student_submission.csv", seed=0)
    ensemble_of_run(settings("--output-dir", str(tmp_path)), started=time.time())
    np.testing.assert_allclose(read_submission(sub / "final_ensemble.csv", IDS)[1], student, rtol=0, atol=1e-12)
    final = predicts(sub / "final_submission.csv", seed=1)
    ensemble_of_run(settings("--output-dir", str(tmp_path), "--use-weighted"), started=time.time())
    np.testing.assert_allclose(read_submission(sub / "final_ensemble.csv", IDS)[1], final, rtol=0, atol=1e-12)
    assert "USE_WEIGHTED weighs folds, and there are none" in capsys.readouterr().out
    manifest = json.loads((sub / "final_ensemble.manifest.json").read_text("utf-8"))
    assert [Path(member["file"]).name for member in manifest["members"]] == ["final_submission.csv"]


def test_without_any_submission_both_ways_to_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        ensemble_of_run(settings("--output-dir", str(tmp_path), "--run", "x"), started=time.time())
    assert "RUN=x sbatch job_distill.sh" in str(refused.value)
    assert "RUN=x sbatch step8_infer_tta.sh" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_with_some_folds_there_only_the_missing_one_is_named(tmp_path: Path) -> None:
    predicts(tmp_path / "sub" / "x_student_submission_fold_0.csv", seed=0)
    with pytest.raises(InputError) as refused:
        ensemble_of_run(settings("--output-dir", str(tmp_path), "--run", "x"), started=time.time())
    assert "fold 0 is missing" in str(refused.value) and "step8" not in str(refused.value)


def test_help_waits_for_no_heavy_import() -> None:
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "scripts" / "ensemble_run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--use-weighted" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"numpy", "pyarrow", "torch", "transformers"}
