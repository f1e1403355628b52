"""A real Slurm for the tests of this directory, and the chain as it runs when nothing disturbs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import NO_SLURM
from tests.slurm.cluster import Cluster, Unavailable
from tests.slurm.faults import LONG, run_long
from tests.slurm.workplace import Workplace, make_workplace

StartCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCluster]:
    """Starts clusters with knobs of ``cluster.sh``; all of them end with the tests, however those end."""
    started: list[Cluster] = []

    def start(**knobs: str) -> Cluster:
        cluster = Cluster(tmp_path_factory.mktemp("slurm"), {"owner": str(os.getpid()), **knobs})
        started.append(cluster)
        try:
            cluster.do("up")
        except Unavailable as refusal:
            pytest.skip(f"{NO_SLURM}: {refusal}")
        return cluster

    try:
        yield start
    finally:
        for cluster in started:
            cluster.do("down")


@pytest.fixture(scope="session")
def _cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster(preemption="1")


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """Two nodes with 8 CPUs, 8 GB and one gres each; no accounting; no job of another test."""
    yield _cluster
    _cluster.clear()


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, backbones: Path) -> Workplace:
    """A repository in which nothing has run; not to be changed, but copied."""
    return make_workplace(tmp_path_factory.mktemp("fresh") / "repository", backbones)


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of all test processes of this session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, fresh: Workplace) -> Workplace:
    """The same after ``./pipeline.sh`` without Slurm; not to be changed, but copied. Test processes share one."""
    shared = _shared(tmp_path_factory)
    with FileLock(shared / "undisturbed.lock"):
        place = Workplace(shared / "undisturbed")
        if not place.root.exists():
            making = fresh.copy(shared / "undisturbed.making")
            done = making.pipeline()
            assert done.returncode == 0, done.stdout + done.stderr
            making.root.rename(place.root)
    return place


@pytest.fixture(scope="session")
def long_undisturbed(tmp_path_factory: pytest.TempPathFactory, undisturbed: Workplace) -> Workplace:
    """The chain with trainings of steps 3 and 5 that last long enough to be cut off; else like ``undisturbed``."""
    shared = _shared(tmp_path_factory)
    with FileLock(shared / "long.lock"):
        place = Workplace(shared / "long", profile=LONG)
        if not place.root.exists():
            making = undisturbed.copy(shared / "long.making", profile=LONG)
            run_long(making)
            making.root.rename(place.root)
    return place


@pytest.fixture
def place(fresh: Workplace, cluster: Cluster, tmp_path: Path) -> Workplace:
    """A repository of the test's own in which nothing has run, and the cluster."""
    return fresh.copy(tmp_path / "repository", cluster)


@pytest.fixture
def ready(undisturbed: Workplace, cluster: Cluster, tmp_path: Path) -> Workplace:
    """A repository of the test's own with all that an undisturbed run wrote, and the cluster."""
    return undisturbed.copy(tmp_path / "repository", cluster)


@pytest.fixture
def long_ready(long_undisturbed: Workplace, cluster: Cluster, tmp_path: Path) -> Workplace:
    """A repository of the test's own with all that an undisturbed run with long trainings wrote, and the cluster."""
    return long_undisturbed.copy(tmp_path / "repository", cluster)
