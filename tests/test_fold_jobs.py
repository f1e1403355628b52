"""The fold jobs and step 9 under plain bash, from any directory, with every setting in a profile of one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_distill.data.folds import make_folds
from arena_distill.data.loading import load_labelled, load_test
from arena_distill.evaluation.heldout import HELDOUT_FILE, read_heldout
from arena_distill.evaluation.metrics import kaggle_log_loss
from arena_distill.evaluation.submission import read_submission
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS
from tests.conftest import GENERAL_SETTINGS, OWN_PREFIXES, REPOSITORY
from tests.training.distill_runs import teacher_logits
from tests.training.teacher_runs import contents, manifest_of

RUN = "x"
N_FOLDS = 2
JOBS = ("job_distill.sh", "job_distill_all_in_one.sh", "distill_all_folds.sh")

Done = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    """This process's, but for settings of the project and a job that we may be in."""
    ours = (*OWN_PREFIXES, "SLURM_", "SBATCH_")
    names = GENERAL_SETTINGS | {"FOLD", "USE_WEIGHTED", "PROCESSES_PER_NODE", "REPO_ROOT"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours) and name not in names}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def run_script(script: str, folder: Path, *flags: str, **variables: str) -> Done:
    command = ["bash", str(REPOSITORY / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(**variables))


@dataclass(frozen=True)
class Site:
    """A profile, and where the jobs that are given it write."""

    profile: Path
    root: Path

    def run(self, script: str, *flags: str, **variables: str) -> Done:
        return run_script(script, self.profile.parent, *flags, **{"PROFILE": str(self.profile), "RUN": RUN} | variables)

    def student(self, fold: int) -> Path:
        return self.root / "model_save" / RUN / f"student_distilbert_fold_{fold}"

    def submission(self, fold: int) -> Path:
        return self.root / "sub" / f"{RUN}_student_submission_fold_{fold}.csv"

    @property
    def ensemble(self) -> Path:
        return self.root / "sub" / f"{RUN}_final_ensemble.csv"

    def copy(self, folder: Path) -> Site:
        """The same, for a test to change."""
        shutil.copytree(self.root, folder / "out")
        profile = folder / "mine.env"
        profile.write_text(self.profile.read_text("utf-8").replace(str(self.root), str(folder / "out")), "utf-8")
        return Site(profile, folder / "out")


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, small_train_csv: Path, small_test_csv: Path, backbones: Path
) -> Site:
    """Votes, rows to predict, and what step 4 leaves of a teacher; no student yet."""
    folder = tmp_path_factory.mktemp("fold jobs")
    root = folder / "out"
    rows = load_labelled(small_train_csv).rows
    logits, fold_of_row = teacher_logits(rows)["llama"], make_folds(rows, N_FOLDS, 42).fold
    for fold in range(N_FOLDS):
        directory = root / "model_save" / "teacher_logits" / f"tiny_fold_{fold}"
        directory.mkdir(parents=True)
        own = np.where((fold_of_row == fold)[:, None], logits, np.float32(np.nan))
        np.save(directory / f"teacher_logits_fold_{fold}.npy", own)
    settings = {
        "TRAIN_CSV": small_train_csv,
        "TEST_CSV": small_test_csv,
        "OUTPUT_DIR": root,
        "CV_NUM_FOLDS": N_FOLDS,
        "STUDENT_MODEL": backbones / "bert",
        "STUDENT_MAX_LENGTH": 48,
        "STUDENT_MAX_STEPS": 4,
        "STUDENT_LEARNING_RATE": 1e-3,
    }
    profile = folder / "mine.env"
    profile.write_text("".join(f"{name}={value} # as a test needs it\n" for name, value in settings.items()), "utf-8")
    return Site(profile, root)


@pytest.fixture(scope="module")
def one_fold(site: Site) -> tuple[Site, Done]:
    """Fold 1 alone, and what its job printed."""
    return site, site.run("job_distill.sh", FOLD="1")


@pytest.fixture(scope="module")
def all_folds(one_fold: tuple[Site, Done], tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Done]:
    """All folds and their ensemble, after fold 1 had been there; not to be changed."""
    own = one_fold[0].copy(tmp_path_factory.mktemp("all"))
    return own, own.run("job_distill_all_in_one.sh")


def visible(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.startswith(".")}


# One fold


@pytest.mark.slow
def test_the_job_of_a_fold_writes_its_student_and_its_submission_and_nothing_else(
    one_fold: tuple[Site, Done], small_test_csv: Path
) -> None:
    site, done = one_fold
    assert done.returncode == 0, done.stdout + done.stderr
    assert visible(site.root / "model_save" / RUN) == {site.student(1).name, "pipeline"}  # with how far the job was
    assert visible(site.root / "sub") == {
        site.submission(1).name,
        site.submission(1).with_suffix(".manifest.json").name,
    }
    read_submission(site.submission(1), load_test(small_test_csv).rows["id"].to_pylist())
    manifest = manifest_of(site.student(1))
    assert (manifest["fold"], manifest["n_folds"], manifest["teachers"]) == (1, N_FOLDS, ["tiny"])
    assert {"calibration.json", HELDOUT_FILE} <= visible(site.student(1))


@pytest.mark.parametrize("variables", [{}, {"FOLD": ""}, {"SLURM_ARRAY_TASK_ID": ""}])
def test_the_job_of_a_fold_asks_for_the_fold(variables: dict[str, str], tmp_path: Path) -> None:
    done = run_script("job_distill.sh", tmp_path, RUN=RUN, OUTPUT_DIR=str(tmp_path), **variables)
    assert done.returncode == EXIT_BAD_SETTINGS
    assert "FOLD is not set" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_fold_that_there_is_not_stops_the_job_at_once(site: Site) -> None:
    before = contents(site.root)
    for script, variables in (("job_distill.sh", {"FOLD": "2"}), ("job_distill.sh", {"SLURM_ARRAY_TASK_ID": "2"})):
        done = site.run(script, **variables)
        assert done.returncode == EXIT_BAD_SETTINGS
        assert "the folds are numbered 0 … 1" in done.stderr
        assert "calibrate" not in done.stdout
    assert contents(site.root) == before


def test_the_job_ends_with_the_exit_code_of_a_training_that_is_refused(site: Site) -> None:
    done = site.run("job_distill.sh", "--distill-teachers", "nowhere/*.npy", FOLD="0", RUN="refused")
    assert done.returncode == EXIT_BAD_INPUT
    assert "nowhere/*.npy matches no file" in done.stderr
    assert "stopped with exit code 3" in done.stdout and "calibrate" not in done.stdout
    assert not (site.root / "model_save" / "refused").exists()


def test_the_mode_is_the_jobs_own(tmp_path: Path) -> None:
    done = run_script("job_distill.sh", tmp_path, "--mode", "student-train", FOLD="0")
    assert done.returncode == EXIT_BAD_SETTINGS
    assert "sets --mode itself" in done.stderr


# All folds


@pytest.mark.slow
def test_all_folds_in_one_job_end_with_the_mean_of_their_submissions(
    all_folds: tuple[Site, Done], small_test_csv: Path
) -> None:
    site, done = all_folds
    assert done.returncode == 0, done.stdout + done.stderr
    ids = load_test(small_test_csv).rows["id"].to_pylist()
    members = np.stack([read_submission(site.submission(fold), ids)[1] for fold in range(N_FOLDS)])
    assert np.abs(members[0] - members[1]).max() > 1e-3, "equal members have any mean"
    np.testing.assert_allclose(read_submission(site.ensemble, ids)[1], members.mean(axis=0), rtol=0, atol=1e-12)
    manifests = [manifest_of(site.student(fold)) for fold in range(N_FOLDS)]
    assert manifests[0]["initial_sha256"] == manifests[1]["initial_sha256"]


@pytest.mark.slow
def test_a_fold_that_was_there_is_not_trained_again(one_fold: tuple[Site, Done], all_folds: tuple[Site, Done]) -> None:
    alone, (site, done) = one_fold[0], all_folds
    assert done.stdout.count("student_distilbert_fold_1: up to date") == 1
    assert done.stdout.count(": trained in") == 1
    assert manifest_of(site.student(1)) == manifest_of(alone.student(1))
    assert site.submission(1).read_bytes() == alone.submission(1).read_bytes()


@pytest.mark.slow
def test_all_in_one_stops_at_the_first_fold_that_fails(all_folds: tuple[Site, Done], tmp_path: Path) -> None:
    site = all_folds[0].copy(tmp_path)
    shutil.rmtree(site.root / "model_save" / "teacher_logits")
    before = contents(site.root)
    done = site.run("job_distill_all_in_one.sh")
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr.count("matches no file -> step 4 writes them") == 1, "no second fold was tried"
    assert "ensemble of the folds" not in done.stdout
    assert contents(site.root) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", ["two", "0", "1"])
def test_a_number_of_folds_that_is_none_is_refused_and_not_taken_for_done(
    count: str, all_folds: tuple[Site, Done], tmp_path: Path
) -> None:
    """With students of an earlier run at hand, step 9 alone would succeed."""
    site = all_folds[0].copy(tmp_path)
    before = contents(site.root)
    done = site.run("job_distill_all_in_one.sh", CV_NUM_FOLDS=count)
    assert done.returncode == EXIT_BAD_SETTINGS, done.stdout + done.stderr
    assert "CV_NUM_FOLDS" in done.stderr
    assert contents(site.root) == before


def shares(ensemble: Path) -> list[float]:
    manifest: dict[str, Any] = json.loads(ensemble.with_suffix(".manifest.json").read_text())
    return [member["weight"] for member in manifest["members"]]


@pytest.mark.slow
def test_weighted_folds_count_by_their_inverse_held_out_loss(all_folds: tuple[Site, Done], tmp_path: Path) -> None:
    site = all_folds[0].copy(tmp_path)
    done = site.run("step9_eval.sh", USE_WEIGHTED="1")
    assert done.returncode == 0, done.stdout + done.stderr
    held_out = [read_heldout(site.student(fold) / HELDOUT_FILE) for fold in range(N_FOLDS)]
    inverse = np.array([1 / kaggle_log_loss(found.probabilities, found.targets) for found in held_out])
    weights = inverse / inverse.sum()
    assert abs(weights[0] - weights[1]) > 1e-6, "equal weights would show nothing"
    np.testing.assert_allclose(shares(site.ensemble), weights, rtol=1e-9)
    ids, found = read_submission(site.ensemble)
    members = np.stack([read_submission(site.submission(fold), ids)[1] for fold in range(N_FOLDS)])
    np.testing.assert_allclose(found, np.tensordot(weights, members, axes=1), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_a_missing_submission_is_named_and_an_older_ensemble_stays(
    fold: int, all_folds: tuple[Site, Done], tmp_path: Path
) -> None:
    site = all_folds[0].copy(tmp_path)
    site.submission(fold).unlink()
    before = contents(site.root)
    done = site.run("step9_eval.sh")
    assert done.returncode == EXIT_BAD_INPUT
    assert f"{site.submission(fold)}: the submission of fold {fold} is missing" in done.stderr
    assert f"FOLD={fold} RUN={RUN} sbatch job_distill.sh" in done.stderr
    assert contents(site.root) == before


@pytest.mark.slow
def test_values_of_a_profile_may_stand_in_quotes(all_folds: tuple[Site, Done], tmp_path: Path) -> None:
    """As in any .env file: the workers and the scripts must read the same profile alike."""
    site = all_folds[0].copy(tmp_path)
    lines = {"RUN": f'"{RUN}"', "OUTPUT_DIR": f"'{site.root}'", "USE_WEIGHTED": '"1"  # by loss', "CV_NUM_FOLDS": '"2"'}
    profile = tmp_path / "quoted.env"
    profile.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), "utf-8")
    done = run_script("step9_eval.sh", tmp_path, PROFILE=str(profile))
    assert done.returncode == 0, done.stdout + done.stderr
    weights = shares(site.ensemble)
    assert weights[0] != weights[1], "USE_WEIGHTED was not heard"


# Without Slurm (tests/slurm has it)


@pytest.mark.parametrize("script", JOBS)
def test_help_is_printed_and_nothing_else_happens(script: str, site: Site) -> None:
    before = contents(site.root)
    done = site.run(script, "--help", FOLD="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("--distill-teachers") == 1
    assert contents(site.root) == before


def without_slurm(tmp_path: Path) -> str:
    """A PATH with every command but Slurm's."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for command in sorted(place.iterdir()) if place.is_dir() else []:
            if command.name not in ("sbatch", "scontrol", "squeue", "srun") and not (directory / command.name).exists():
                (directory / command.name).symlink_to(command)
    return str(directory)


def test_without_slurm_the_job_that_does_all_is_named(site: Site, tmp_path: Path) -> None:
    before = contents(site.root)
    done = site.run("distill_all_folds.sh", PATH=without_slurm(tmp_path))
    assert done.returncode == EXIT_BAD_SETTINGS
    assert "no Slurm here (sbatch) -> bash job_distill_all_in_one.sh" in done.stderr
    assert contents(site.root) == before
