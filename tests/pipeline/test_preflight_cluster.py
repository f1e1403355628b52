"""Preflight beside a real Slurm: what ``sbatch --test-only`` and ``sinfo`` say of the chain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.preflight_runs import look
from tests.slurm.cluster import Cluster, Unavailable


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Configuration of a cluster of two nodes with 8 CPUs, 8 GB and one GPU each, as far as scheduling goes."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), {"owner": str(os.getpid())})
    try:
        cluster.do("up")
    except Unavailable as refusal:
        pytest.skip(f"NO SLURM WAS TESTED: {refusal}")
    try:
        yield cluster.environment["SLURM_CONF"]
    finally:
        cluster.do("down")


@pytest.fixture
def fitting(profile: Path) -> Path:
    """The profile with what that cluster has."""
    with profile.open("a", encoding="utf-8") as stream:
        stream.write("SBATCH_MEM_PER_NODE=7G\nSBATCH_TIMELIMIT=00:30:00\n")
    return profile


def test_a_chain_that_slurm_takes(slurm: str, fitting: Path) -> None:
    seen = look("--profile", str(fitting), SLURM_CONF=slurm, GPU_MEMORY_GB=80)
    assert (seen.code, seen.fixes) == (0, [])
    assert "sbatch --test-only" in seen.one("ok", "cluster", "steps 1-9").said
    assert "80.0 GB" in seen.one("ok", "memory", "step 5, GPU").said


def test_without_slurm_asked_for_a_chain_is_for_this_machine(slurm: str, fitting: Path) -> None:
    seen = look("--profile", str(fitting), "--no-slurm", SLURM_CONF=slurm, SBATCH_PARTITION="none-such")
    assert seen.code == 0
    seen.one("ok", "cluster", "this machine")
    within = look("--profile", str(fitting), SLURM_CONF=slurm, SLURM_JOB_ID=1, SBATCH_PARTITION="none-such")
    within.one("ok", "cluster", "this machine")


@pytest.mark.parametrize(
    ("settings", "steps", "advice"),
    [
        ({"SBATCH_PARTITION": "none-such"}, "steps 1-9", "SBATCH_PARTITION"),
        ({"SBATCH_GRES": "gpu:a100:1"}, "steps 1-9", "SBATCH_GRES"),
        ({"SBATCH_MEM_PER_NODE": "90G"}, "steps 1-9", "SBATCH_MEM_PER_NODE"),
        ({"STEP6_CPUS": "90"}, "step 6", "CPUS_PER_TASK"),
        ({"STEP5_SBATCH": "--time=soon"}, "step 5", "SBATCH_TIMELIMIT"),
    ],
)
def test_what_slurm_refuses(settings: dict[str, str], steps: str, advice: str, slurm: str, fitting: Path) -> None:
    seen = look("--profile", str(fitting), SLURM_CONF=slurm, **settings)
    assert seen.code == 2
    line = seen.one("fix", "cluster", "sbatch")
    assert line.subject == steps
    assert advice in line.advice


def test_gpus_of_unknown_size(slurm: str, fitting: Path) -> None:
    seen = look("--profile", str(fitting), SLURM_CONF=slurm)
    assert seen.code == 0
    assert "GPU_MEMORY_GB" in seen.one("warning", "memory", "steps 1, 3-8, GPU").advice
    small = look("--profile", str(fitting), SLURM_CONF=slurm, GPU_MEMORY_GB="0.5")
    assert small.code == 2
    small.one("fix", "memory", "step 5, GPU", "0.5 GB")
    on_the_cpu = look("--profile", str(fitting), SLURM_CONF=slurm, SBATCH_GRES="none")
    assert "SBATCH_MEM_PER_NODE=7G" in on_the_cpu.one("ok", "memory", "step 5, RAM").said


def test_nothing_is_submitted(slurm: str, fitting: Path) -> None:
    import subprocess

    look("--profile", str(fitting), "--slurm", SLURM_CONF=slurm)
    queue = subprocess.run(["squeue", "--noheader", "--states=all"], capture_output=True, text=True,
                           env={**os.environ, "SLURM_CONF": slurm}, check=True)  # fmt: skip
    assert queue.stdout == ""


def test_slurm_that_is_asked_for_and_does_not_answer(profile: Path, tmp_path: Path) -> None:
    seen = look("--profile", str(profile), "--slurm", SLURM_CONF=tmp_path / "none.conf")
    assert seen.code == 2
    assert "--slurm" in seen.one("fix", "cluster", "Slurm").advice
