"""Jobs that the cluster takes its nodes away from come back, go on from their last checkpoint, and end the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Job, eventually
from tests.slurm.faults import (
    STUDENTS,
    TEACHERS,
    assert_as_undisturbed,
    log_of,
    undo,
    wait_for_checkpoint,
)
from tests.slurm.workplace import Workplace


def _disturbed_in_the_middle(place: Workplace, cluster: Cluster, stage: str) -> Job:
    """The task of fold 0, which trains and has saved something; the other fold is complete."""
    undo(place, stage, 0)
    done = place.pipeline("--slurm", "--from", stage.removeprefix("step")[0])
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_checkpoint(place, cluster, stage, 0)
    task = cluster.task(place.job_of(stage), 0)
    assert task.state == "RUNNING"
    return task


def _ends_as_undisturbed(place: Workplace, undisturbed: Workplace, cluster: Cluster, stage: str) -> None:
    """The run ends by itself, after its task was started again and went on from a checkpoint."""
    cluster.wait(seconds=600)
    task = cluster.task(place.job_of(stage), 0)
    assert (task.state, task.restarts >= 1) == ("COMPLETED", True), cluster.shown() + place.logs()
    assert "going on from checkpoint-" in log_of(place, stage, 0)
    assert_as_undisturbed(place, undisturbed, cluster, stage, 0)


@pytest.mark.fault
def test_scontrol_requeue(long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster) -> None:
    task = _disturbed_in_the_middle(long_ready, cluster, TEACHERS)
    cluster.command("scontrol", "requeue", task.own_id)
    _ends_as_undisturbed(long_ready, long_undisturbed, cluster, TEACHERS)


@pytest.mark.fault
def test_a_node_is_set_down(long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster) -> None:
    task = _disturbed_in_the_middle(long_ready, cluster, STUDENTS)
    cluster.command("scontrol", "update", f"NodeName={task.node}", "State=DOWN", "Reason=test")
    try:
        eventually(lambda: cluster.task(task.job_id, 0).state != "RUNNING", 60, "the end of its job", cluster.shown)
        _ends_as_undisturbed(long_ready, long_undisturbed, cluster, STUDENTS)
        assert cluster.task(task.job_id, 0).node != task.node
    finally:
        cluster.command("scontrol", "update", f"NodeName={task.node}", "State=RESUME")


@pytest.mark.fault
def test_a_node_loses_power(long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster) -> None:
    """Nobody is told: no signal, no trap, no last checkpoint."""
    task = _disturbed_in_the_middle(long_ready, cluster, TEACHERS)
    cluster.do("kill-node", task.node.removeprefix("n"))
    try:
        _ends_as_undisturbed(long_ready, long_undisturbed, cluster, TEACHERS)
        assert cluster.task(task.job_id, 0).node != task.node
    finally:
        cluster.do("start-node", task.node.removeprefix("n"))


def _starts(job_id: str, cluster: Cluster) -> bool:
    """Has the scheduler look at a waiting job now: by itself it may see only half a minute later that grace is over."""
    if cluster.states(job_id) != ["PENDING"]:
        return True
    for nice in (1, 0):
        cluster.command("scontrol", "update", f"JobId={job_id}", f"Nice={nice}", check=False)  # may have started
    return False


@pytest.mark.fault
def test_jobs_of_a_higher_partition_take_the_nodes(
    long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster, tmp_path: Path
) -> None:
    _disturbed_in_the_middle(long_ready, cluster, STUDENTS)
    urgent = cluster.command(
        *("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/%j.out"),
        "--wrap=sleep 3",
    ).strip()
    eventually(lambda: _starts(urgent, cluster), 90, "the start of the urgent job", cluster.shown)
    _ends_as_undisturbed(long_ready, long_undisturbed, cluster, STUDENTS)
    assert cluster.states(urgent) == ["COMPLETED"]


@pytest.mark.fault
def test_the_controller_crashes_and_comes_back(
    long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster
) -> None:
    """Jobs run on without it, one even ends; nothing is lost and nothing runs twice."""
    place = long_ready
    task = _disturbed_in_the_middle(place, cluster, STUDENTS)
    cluster.do("restart-controller")
    assert cluster.task(task.job_id, 0).state == "RUNNING"
    cluster.do("stop-controller")
    weights = place.models / "distilled_small_fold_0" / "adapter_model.safetensors"
    eventually(weights.is_file, 300, "the end of the training without a controller", place.logs)
    cluster.do("start-controller")
    cluster.wait(seconds=600)
    task = cluster.task(task.job_id, 0)
    assert (task.state, task.restarts) == ("COMPLETED", 0), cluster.shown() + place.logs()
    assert log_of(place, STUDENTS, 0).count(": trained in") == 1
    assert_as_undisturbed(place, long_undisturbed, cluster, STUDENTS, 0)
