"""The jobs that users submit by themselves: single folds, arrays, all folds, from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from arena_distill.data.loading import load_test
from arena_distill.evaluation.submission import read_submission
from tests.slurm.cluster import Cluster
from tests.slurm.faults import STUDENTS, undo
from tests.slurm.workplace import N_FOLDS, RUN, SMALL_JOB, Workplace


def _student(place: Workplace, fold: int) -> Path:
    return place.models / f"student_distilbert_fold_{fold}"


def _fold_submission(place: Workplace, fold: int) -> Path:
    return place.root / "sub" / f"{RUN}_student_submission_fold_{fold}.csv"


def _ids(place: Workplace) -> list[object]:
    return list(load_test(place.root / "data" / "small" / "test.csv").rows["id"].to_pylist())


def _complete(cluster: Cluster, place: Workplace, *jobs: str) -> None:
    """Wait for jobs, which must all be completed."""
    cluster.wait(*jobs)
    states = set(cluster.states(*jobs))
    assert states == {"COMPLETED"}, cluster.shown() + place.logs()


@pytest.mark.slow
def test_step_4_for_one_fold_submitted_from_elsewhere(
    ready: Workplace, cluster: Cluster, undisturbed: Workplace, tmp_path: Path
) -> None:
    ready.remove(f"model_save/{RUN}/teacher_logits/*_fold_0")
    job = ready.sbatch("step4_infer_fold.sh", cwd=tmp_path, FOLD="0", SBATCH_OUTPUT=str(tmp_path / "%x_%j.out"))
    cluster.wait(job)
    printed = next(tmp_path.glob("oof-fold_*.out")).read_text("utf-8")
    assert cluster.states(job) == ["COMPLETED"], printed
    file = Path("model_save", RUN, "teacher_logits", "small-llama_fold_0", "teacher_logits_fold_0.npy")
    assert (ready.root / file).read_bytes() == (undisturbed.root / file).read_bytes()
    assert "scoring" in printed


@pytest.mark.slow
def test_the_job_of_one_fold_distils_calibrates_and_predicts(ready: Workplace, cluster: Cluster) -> None:
    job = ready.sbatch("job_distill.sh", FOLD="1")
    _complete(cluster, ready, job)
    assert (_student(ready, 1) / "calibration.json").is_file()
    read_submission(_fold_submission(ready, 1), _ids(ready))
    assert not _student(ready, 0).exists() and not _fold_submission(ready, 0).exists()


@pytest.mark.fault
def test_an_array_over_folds_trains_each_of_them(ready: Workplace, cluster: Cluster, undisturbed: Workplace) -> None:
    undo(ready, STUDENTS, 0, 1)
    job = ready.sbatch("step5_distill_student.sh", f"--array=0-{N_FOLDS - 1}")
    _complete(cluster, ready, job)
    for fold in range(N_FOLDS):
        weights = Path("model_save", RUN, f"distilled_small_fold_{fold}", "adapter_model.safetensors")
        assert (ready.root / weights).read_bytes() == (undisturbed.root / weights).read_bytes()
        assert (ready.root / "logs" / f"distill_{job}_{fold}.out").is_file()


@pytest.mark.fault
def test_an_array_over_shards_scores_every_row_once(ready: Workplace, cluster: Cluster, undisturbed: Workplace) -> None:
    shutil.rmtree(ready.models / "teacher_logits")
    job = ready.sbatch("step4_infer_teacher_logits.sh", "--array=0-1", INFER_TRAIN_SHARDS="2")
    _complete(cluster, ready, job)
    for fold in range(N_FOLDS):
        file = Path("model_save", RUN, "teacher_logits", f"small-llama_fold_{fold}", f"teacher_logits_fold_{fold}.npy")
        found, expected = (np.load(place.root / file) for place in (ready, undisturbed))
        assert np.isfinite(expected).all(axis=1).sum() == 80
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert (ready.models / "teacher_logits" / "oof_probs.parquet").is_file()


@pytest.mark.fault
def test_the_same_job_twice_at_once_trains_once(ready: Workplace, cluster: Cluster) -> None:
    undo(ready, STUDENTS, 0)
    jobs = [ready.sbatch("step5_distill_student.sh", FOLD="0") for _ in range(2)]
    cluster.wait(*jobs)
    assert "COMPLETED" in cluster.states(*jobs)
    printed = ready.logs()
    assert printed.count(": trained in") == 1, printed
    assert "another job is writing it" in printed or "up to date" in printed


@pytest.mark.fault
def test_all_folds_are_an_array_and_the_weighted_ensemble_comes_after_them(ready: Workplace, cluster: Cluster) -> None:
    submitter = ready.sbatch("distill_all_folds.sh", USE_WEIGHTED="1")
    cluster.wait(submitter)
    cluster.wait()
    mine = [job for job in cluster.jobs() if int(job.shown["JobId"]) >= int(submitter)]
    assert len(mine) == 1 + N_FOLDS + 1
    assert {job.state for job in mine} == {"COMPLETED"}, cluster.shown() + ready.logs()
    ensemble = ready.submission
    ids = _ids(ready)
    members = np.stack([read_submission(_fold_submission(ready, fold), ids)[1] for fold in range(N_FOLDS)])
    manifest = json.loads(ensemble.with_suffix(".manifest.json").read_text("utf-8"))
    shares = [member["weight"] for member in manifest["members"]]
    assert len(shares) == N_FOLDS and shares[0] != shares[1], "USE_WEIGHTED was not heard"
    expected = np.tensordot(shares, members, axes=1)
    np.testing.assert_allclose(read_submission(ensemble, ids)[1], expected, rtol=0, atol=1e-12)


@pytest.mark.fault
def test_the_ensemble_of_folds_that_failed_is_cancelled(ready: Workplace, cluster: Cluster) -> None:
    undo(ready, STUDENTS)
    done = ready.run("bash", "distill_all_folds.sh", "--distill-teachers", "nowhere/*.npy", **SMALL_JOB)
    assert done.returncode == 0, done.stdout + done.stderr
    cluster.wait()
    states = sorted(job.state for job in cluster.jobs()[-(N_FOLDS + 1) :])
    assert states == ["CANCELLED"] + ["FAILED"] * N_FOLDS, cluster.shown()
    assert ready.logs().count("nowhere/*.npy matches no file") == N_FOLDS
    assert not ready.submission.exists()


@pytest.mark.fault
def test_all_folds_in_one_job_submit_nothing(ready: Workplace, cluster: Cluster) -> None:
    job = ready.sbatch("job_distill_all_in_one.sh")
    _complete(cluster, ready, job)
    assert max(int(one.shown["JobId"]) for one in cluster.jobs()) == int(job), "no nested sbatch"
    ids = _ids(ready)
    members = np.stack([read_submission(_fold_submission(ready, fold), ids)[1] for fold in range(N_FOLDS)])
    np.testing.assert_allclose(read_submission(ready.submission, ids)[1], members.mean(axis=0), rtol=0, atol=1e-12)


@pytest.mark.fault
def test_the_baseline_job_trains_calibrates_and_predicts(place: Workplace, cluster: Cluster) -> None:
    job = place.sbatch("job.sh", STUDENT_MAX_STEPS="4")
    _complete(cluster, place, job)
    submissions = list((place.root / "sub").glob("*student_submission.csv"))
    assert len(submissions) == 1
    read_submission(submissions[0], _ids(place))
