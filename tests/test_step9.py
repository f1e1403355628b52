"""Step 9 under plain bash: which submissions it takes, that it evaluates where there are votes, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data.loading import load_labelled, load_test
from arena_distill.evaluation.heldout import HELDOUT_FILE, write_heldout
from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.runtime.artifacts import write_manifest
from arena_distill.runtime.errors import EXIT_BAD_INPUT
from tests.conftest import REPOSITORY, SAMPLE

Done = subprocess.CompletedProcess[str]
N_FOLDS = 2


class Site:
    """An output directory with what earlier steps left of the run ``x``, and a test file with votes."""

    def __init__(self, root: Path, test_csv: Path) -> None:
        self.root = root
        self.test = root / "data" / "test.csv"
        self.test.parent.mkdir(parents=True)
        shutil.copy(test_csv, self.test)
        self.ids: list[str] = load_test(self.test).rows["id"].to_pylist()

    def votes(self) -> None:
        """Put the votes beside the test file."""
        with (SAMPLE / "test_labels.csv").open(newline="") as file:
            lines = [row for row in csv.reader(file) if row[0] in ("id", *self.ids)]
        with self.test.with_name("test_labels.csv").open("w", newline="") as out:
            csv.writer(out).writerows(lines)

    def sub(self, name: str) -> Path:
        return self.root / "sub" / f"x_{name}"

    def predicts(self, name: str, seed: int, ids: list[str] | None = None) -> np.ndarray:
        ids = self.ids if ids is None else ids
        p = np.random.default_rng(seed).dirichlet(np.ones(3), size=len(ids))
        write_submission(self.sub(name), ids, p)
        return p

    def folds(self) -> np.ndarray:
        """Students of two folds; what they say of the test rows, ``[2, N, 3]``."""
        rows = load_labelled(SAMPLE / "train.csv").rows.slice(0, 40)
        members = []
        for fold in range(N_FOLDS):
            student = self.root / "model_save" / "x" / f"student_distilbert_fold_{fold}"
            own = rows.take(pa.array(np.arange(fold, 40, N_FOLDS)))
            student.mkdir(parents=True)
            write_heldout(student / HELDOUT_FILE, own, np.full((20, 3), 1 / 3))
            details: dict[str, Any] = {"fold": fold, "n_folds": N_FOLDS}
            write_manifest(student, stage="s", settings={}, inputs={}, started=0.0, details=details)
            members.append(self.predicts(f"student_submission_fold_{fold}.csv", seed=fold))
        return np.stack(members)

    def run(self, **variables: str) -> Done:
        usual = {"RUN": "x", "OUTPUT_DIR": str(self.root), "TEST_CSV": str(self.test), "EVALUATION_RESAMPLES": "100"}
        command = ["bash", str(REPOSITORY / "step9_eval.sh")]
        environment = {**os.environ, "TRAIN_CSV": "none", **usual, **variables}
        return subprocess.run(command, capture_output=True, text=True, cwd=self.root, env=environment)

    @property
    def ensemble(self) -> np.ndarray:
        return read_submission(self.sub("final_ensemble.csv"), self.ids)[1]

    @property
    def evaluation(self) -> dict[str, Any]:
        return dict(json.loads(self.sub("evaluation.json").read_text("utf-8")))

    def outputs(self) -> dict[str, bytes]:
        files = (path for path in (self.root / "sub").iterdir() if not path.name.startswith("."))
        return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def site(tmp_path: Path, small_test_csv: Path) -> Site:
    return Site(tmp_path, small_test_csv)


def test_without_folds_the_final_submission_is_taken_before_that_of_a_student_and_evaluated(site: Site) -> None:
    site.votes()
    site.predicts("student_submission.csv", seed=0)
    final = site.predicts("final_submission.csv", seed=1)
    done = site.run()
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(site.ensemble, final, rtol=0, atol=1e-12)
    assert [member["file"] for member in site.evaluation["members"]] == ["sub/x_final_submission.csv"]
    assert "log loss" in done.stdout and "report" in done.stdout


def test_without_votes_there_is_an_ensemble_and_no_evaluation(site: Site) -> None:
    student = site.predicts("student_submission.csv", seed=0)
    done = site.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no votes on {site.test} at hand" in done.stdout
    np.testing.assert_allclose(site.ensemble, student, rtol=0, atol=1e-12)
    assert not site.sub("evaluation.json").exists()


def test_folds_are_taken_before_a_final_submission_and_the_way_to_combine_both_is_shown(site: Site) -> None:
    site.votes()
    members = site.folds()
    site.predicts("final_submission.csv", seed=9)
    done = site.run()
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(site.ensemble, members.mean(axis=0), rtol=0, atol=1e-12)
    assert [member["fold"] for member in site.evaluation["members"]] == [0, 1]
    advice = f"ensemble_submissions.py OUT {site.sub('final_ensemble.csv')} {site.sub('final_submission.csv')}"
    assert advice in done.stdout


@pytest.mark.parametrize("kind", ["one", "folds"])
def test_a_member_of_other_rows_than_the_test_file_is_refused_and_all_stays(site: Site, kind: str) -> None:
    site.votes()
    name = "final_submission.csv"
    if kind == "folds":
        site.folds()
        name = "student_submission_fold_0.csv"
    site.predicts(name, seed=1)
    assert site.run().returncode == 0
    site.predicts(name, seed=1, ids=[*site.ids[:-1], "new"])
    before = site.outputs()
    done = site.run()
    assert done.returncode == EXIT_BAD_INPUT
    assert f"{site.sub(name)}" in done.stderr and "1 of 40 ids are missing" in done.stderr
    assert site.outputs() == before


def test_nothing_to_ensemble_is_named_with_the_job_that_makes_it(site: Site) -> None:
    done = site.run()
    assert done.returncode == EXIT_BAD_INPUT
    assert "fold 0 is missing" in done.stderr and "RUN=x sbatch job_distill.sh" in done.stderr
    assert not (site.root / "sub").exists()
