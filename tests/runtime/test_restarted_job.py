"""What a job was told to make again (FORCE=1) it makes once, however often Slurm requeues it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from arena_distill.runtime.artifacts import read_manifest, write_manifest
from arena_distill.runtime.job import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """In the middle of Slurm's job 7."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return Job(settings={"rate": 1.0}, inputs={}, final=tmp_path / "model")


def make(job: Job) -> None:
    """The output."""
    job.final.mkdir(exist_ok=True)
    write_manifest(job.final, stage="toy", settings=job.settings, inputs=job.inputs, started=time.time())


def test_again_is_heeded_once_by_a_job_that_is_requeued(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.is_wanted(False) and job.is_wanted(True)
    make(job)
    assert not job.is_wanted(False)
    assert job.is_wanted(True), "another command within an allocation"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not job.is_wanted(True)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job.is_wanted(True), "that was another job"
    assert not job.is_wanted(False)


def test_an_output_of_other_settings_is_wanted_whoever_made_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    make(job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    other = Job(settings={"rate": 2.0}, inputs={}, final=job.final)
    assert other.is_wanted(False) and not job.is_wanted(False)


def test_outside_of_slurm_again_is_always_heeded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    make(job)
    assert (read_manifest(job.final) or {})["slurm_job"] is None
    assert job.is_wanted(True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # of whatever it was
    assert job.is_wanted(True)
