"""A job that is about to hit its time limit saves, goes back into the queue, and goes on from there."""

from __future__ import annotations

import time

import pytest

from tests.slurm.cluster import Cluster, eventually
from tests.slurm.faults import STUDENTS, TEACHERS, assert_as_undisturbed, log_of, undo
from tests.slurm.workplace import RUN, Workplace

LIMIT = {"SBATCH_TIMELIMIT": "1", "SBATCH_SIGNAL": "B:USR1@25", "MAX_REQUEUES": "10"}
"""A minute, of which the signal leaves 25 seconds at least; on a busy machine little else than imports fits in."""

BEFORE_SECONDS = 14
"""The controller looks at time limits 30 s after its start, and every 30 s from then on. A job that is submitted this
long after its start has come through its imports by then, and not to its end: ``faults.LONG_SECONDS``."""


@pytest.mark.fault
@pytest.mark.parametrize("stage", [TEACHERS, STUDENTS])
def test_a_training_over_its_time_limit_is_requeued_and_loses_nothing(
    stage: str, long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster
) -> None:
    place = long_ready
    undo(place, stage, 0)
    cluster.do("restart-controller")
    time.sleep(BEFORE_SECONDS)
    number = stage.removeprefix("step")[0]
    done = place.pipeline("--slurm", "--from", number, **LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    job = place.job_of(stage)
    finished = place.models / {TEACHERS: "small-llama_fold_0_lora", STUDENTS: "distilled_small_fold_0"}[stage]

    def never_completed_before_its_end() -> bool:
        completed = cluster.task(job, 0).state == "COMPLETED"
        assert not completed or (finished / "manifest.json").is_file(), cluster.shown()
        return cluster.idle()

    eventually(never_completed_before_its_end, 900, "the end of the run", cluster.shown)
    task = cluster.task(job, 0)
    assert task.restarts >= 1, f"it was not cut off: longer trainings are needed here\n{cluster.shown()}"
    assert task.state == "COMPLETED", cluster.shown() + place.logs()
    printed = log_of(place, stage, 0)
    assert "going on from checkpoint-" in printed
    assert printed.count("exit code 75") >= 1
    assert_as_undisturbed(place, long_undisturbed, cluster, stage, 0)
    assert place.status()[stage, 0]["restarts"] == task.restarts, f"status of {RUN} hides its requeues"
