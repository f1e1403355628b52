"""The test cluster itself: real nodes, several side by side, and nothing is left of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_SLURM, REPOSITORY
from tests.slurm.cluster import SCRIPT, UNAVAILABLE, Cluster, eventually, login_environment, processes_of
from tests.slurm.conftest import StartCluster

SLEEP = "--wrap=sleep 300 & wait"


def test_there_are_two_nodes_of_one_real_slurm(cluster: Cluster) -> None:
    nodes = cluster.command("srun", "--nodes=2", "--ntasks-per-node=1", "printenv", "SLURMD_NODENAME").split()
    assert sorted(nodes) == ["n1", "n2"]


def test_a_second_cluster_knows_nothing_of_the_first_and_leaves_no_process(
    cluster: Cluster, start_cluster: StartCluster, tmp_path: Path
) -> None:
    other = start_cluster(gres="")
    ids = {}
    for one in (cluster, other):
        ids[one.directory] = one.command("sbatch", "--parsable", f"--output={tmp_path}/%j.out", SLEEP).strip()
        eventually(lambda one=one: "RUNNING" in one.states(), 20, "a job that runs", one.shown)  # type: ignore[misc]
    assert cluster.command("sinfo", "-h", "-o", "%G").strip() != other.command("sinfo", "-h", "-o", "%G").strip()
    assert processes_of(other)
    other.do("down")
    eventually(lambda: not processes_of(other), 5, "no process of the second cluster")
    assert cluster.states(ids[cluster.directory]) == ["RUNNING"]


def test_a_cluster_goes_when_its_owner_is_killed(tmp_path: Path, start_cluster: StartCluster) -> None:
    with subprocess.Popen(["sleep", "300"]) as owner:
        orphan = start_cluster(owner=str(owner.pid))
        orphan.command("sbatch", f"--output={tmp_path}/%j.out", SLEEP)
        eventually(lambda: "RUNNING" in orphan.states(), 20, "a job that runs", orphan.shown)
        owner.kill()
    eventually(lambda: not processes_of(orphan), 30, "no process of a cluster without an owner")


def test_jobs_outlive_the_controller(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.command("sbatch", "--parsable", f"--output={tmp_path}/%j.out", "--wrap=sleep 3; echo done").strip()
    eventually(lambda: cluster.states(job) == ["RUNNING"], 20, "a job that runs", cluster.shown)
    cluster.do("restart-controller")
    cluster.wait(job, seconds=60)
    assert cluster.states(job) == ["COMPLETED"]
    assert (tmp_path / f"{job}.out").read_text() == "done\n"


def test_where_there_can_be_no_cluster_its_tests_are_skipped_loudly(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "two_nodes", __file__]
    environment = login_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    end = done.stdout[-1000:]
    assert f"{NO_SLURM}: 1 tests were skipped" in end
    assert "no test cluster: only root can start its daemons -> run the tests as root" in end


@pytest.mark.parametrize(
    ("user", "says"),
    [("0", "Slurm is not installed, and apt-get is not here -> install munge"), ("1000", "only root can start")],
)
def test_where_there_can_be_no_cluster_it_says_why(user: str, says: str, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "realpath", "mkdir", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tools / "id").chmod(0o755)
    script = tmp_path / "cluster.sh"
    script.write_text(SCRIPT.read_text("utf-8").replace("PATH=$PATH:/usr/sbin:/sbin", ""), "utf-8")
    command = ["bash", str(script), "up", str(tmp_path / "cluster")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tools)})
    assert done.returncode == UNAVAILABLE
    assert says in done.stderr
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("words", [[], ["up"], ["kill-node", "somewhere"], ["sideways", "somewhere"]])
def test_a_wrong_command_line_is_answered_with_the_right_ones(words: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, env=login_environment())
    assert done.returncode == 2
    assert "cluster.sh up DIR" in done.stderr
