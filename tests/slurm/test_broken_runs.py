"""Runs in which something is cancelled, fails or gets nowhere: the rest behaves, status says so, resume mends it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arena_distill.runtime.artifacts import locked
from arena_distill.runtime.errors import EXIT_REQUEUE
from tests.slurm.cluster import Cluster, eventually
from tests.slurm.faults import STUDENTS, TEACHERS, assert_as_undisturbed, log_of, undo, wait_for_checkpoint
from tests.slurm.workplace import RUN, Workplace

INFER = "step4_infer_teacher_logits"
LATER = ("step6_lora_ensemble", "step7_quantize_gptq", "step8_infer_tta", "step9_eval")


def _submit(place: Workplace, stage: str, **variables: str) -> str:
    """The chain from a stage on; the id of that stage's job."""
    done = place.pipeline("--slurm", "--from", stage.removeprefix("step")[0], **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return place.job_of(stage)


def _resume(place: Workplace, cluster: Cluster) -> None:
    done = place.pipeline("resume", RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    cluster.wait(seconds=600)


def _states_of(place: Workplace, cluster: Cluster, *stages: str) -> set[str]:
    return {state for stage in stages for state in cluster.states(place.job_of(stage))}


def _wait_for_line(place: Workplace, cluster: Cluster, text: str, times: int) -> None:
    """Until the jobs of the teacher of fold 0 have printed a text so many times."""

    def printed() -> str:
        return log_of(place, TEACHERS, 0)

    eventually(lambda: printed().count(text) == times, 200, f"{times} × {text!r}", lambda: cluster.shown() + printed())


@contextmanager
def _frozen(place: Workplace, script: str) -> Iterator[None]:
    """Within the context the processes of a workplace that run a script do nothing; waits until there are any."""
    found: list[int] = []

    def find() -> bool:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it is gone
                if script in (process / "cmdline").read_text() and (process / "cwd").resolve() == place.root.resolve():
                    found.append(int(process.name))
        return bool(found)

    eventually(find, 60, f"{script} in {place.root}")
    for number in found:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)


@pytest.mark.slow
def test_cancel_ends_this_run_and_nothing_else(place: Workplace, cluster: Cluster, tmp_path: Path) -> None:
    other = cluster.command("sbatch", "--parsable", f"--output={tmp_path}/%j.out", "--wrap=sleep 600").strip()
    done = place.pipeline("--slurm")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [job["job_id"] for job in place.submitted()]
    eventually(lambda: "RUNNING" in cluster.states(jobs[0]), 60, "the start of step 1", cluster.shown)
    done = place.pipeline("cancel", RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    cluster.wait(*jobs, seconds=120)
    assert set(cluster.states(*jobs)) <= {"CANCELLED", "COMPLETED"}, cluster.shown()
    assert {job.restarts for job in cluster.jobs(*jobs)} == {0}
    assert cluster.states(other) == ["RUNNING"]
    assert "cancelled" in {line["state"] for line in place.status().values()}


@pytest.mark.fault
def test_a_cancelled_task_is_not_resurrected_and_resume_goes_on_from_its_checkpoint(
    long_ready: Workplace, long_undisturbed: Workplace, cluster: Cluster
) -> None:
    place = long_ready
    undo(place, STUDENTS, 0)
    job = _submit(place, STUDENTS)
    wait_for_checkpoint(place, cluster, STUDENTS, 0)
    jobs = len(cluster.jobs())
    cluster.command("scancel", f"{job}_0")
    eventually(lambda: cluster.task(job, 0).state == "CANCELLED", 60, "the end of the task", cluster.shown)
    cluster.wait(seconds=60)
    time.sleep(15)  # a requeued job would be pending by now
    task = cluster.task(job, 0)
    assert (task.state, task.restarts, len(cluster.jobs())) == ("CANCELLED", 0, jobs), cluster.shown()
    assert cluster.task(job, 1).state == "COMPLETED"
    assert _states_of(place, cluster, *LATER) == {"CANCELLED"}, cluster.shown()
    status = place.status()
    assert status[STUDENTS, 0]["state"] == "cancelled" and status[STUDENTS, 1]["state"] == "done"
    assert status[STUDENTS, 0]["artifact"]["state"] != "complete"

    _resume(place, cluster)
    again = [one for one in place.submitted() if one["stage"] == STUDENTS][-1]
    assert again["tasks"] == [0], "the finished fold was submitted again"
    assert "going on from checkpoint-" in log_of(place, STUDENTS, 0)
    assert_as_undisturbed(place, long_undisturbed, cluster, STUDENTS, 0)


@pytest.mark.fault
def test_a_failing_fold_takes_only_its_dependents_with_it(
    ready: Workplace, undisturbed: Workplace, cluster: Cluster
) -> None:
    place = ready
    undo(place, TEACHERS, 0, 1)
    place.remove(f"model_save/{RUN}/teacher_logits/*_fold_*")
    with locked(place.models / "small-llama_fold_1_lora"):  # as another job would, that has the same RUN
        job = _submit(place, TEACHERS)
        cluster.wait(seconds=600)
    assert (cluster.task(job, 0).state, cluster.task(job, 1).state) == ("COMPLETED", "FAILED"), cluster.shown()
    scoring = place.job_of(INFER)
    assert (cluster.task(scoring, 0).state, cluster.task(scoring, 1).state) == ("COMPLETED", "CANCELLED")
    assert _states_of(place, cluster, STUDENTS, *LATER) == {"CANCELLED"}, cluster.shown()
    assert not place.submission.exists()

    status = place.status()
    assert {key for key, line in status.items() if line["state"] == "failed"} == {(TEACHERS, 1)}
    assert "another job is writing it" in status[TEACHERS, 1]["reason"]
    assert {status[TEACHERS, 0]["state"], status[INFER, 0]["state"]} == {"done"}
    assert status[INFER, 1]["state"] == "cancelled"
    shown = place.pipeline("status", RUN).stdout
    assert "another job is writing it" in shown and f"resume {RUN}" in shown

    _resume(place, cluster)
    tasks = {one["stage"]: one["tasks"] for one in place.submitted()[7:]}
    assert (tasks[TEACHERS], tasks[INFER]) == ([1], [1]), "only what was missing"
    assert_as_undisturbed(place, undisturbed, cluster, TEACHERS, 0, 1)


@pytest.mark.fault
def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(
    ready: Workplace, undisturbed: Workplace, cluster: Cluster
) -> None:
    """Told to stop before it has saved anything, it goes back into the queue as often as MAX_REQUEUES says."""
    place = ready
    undo(place, TEACHERS, 0)
    allowed = 2
    job = _submit(place, TEACHERS, MAX_REQUEUES=str(allowed))
    for start in range(1, allowed + 2):
        _wait_for_line(place, cluster, "train teachers of fold 0", start)
        with _frozen(place, "train_teachers.py"):  # Slurm may take longer to tell it than it takes to train
            cluster.command("scancel", "--batch", "--signal=USR1", f"{job}_0")
            _wait_for_line(place, cluster, "asked to stop", start)
        _wait_for_line(place, cluster, f"exit code {EXIT_REQUEUE}", start)
    cluster.wait(seconds=200)
    task = cluster.task(job, 0)
    assert (task.state, task.restarts) == ("FAILED", allowed), cluster.shown() + log_of(place, TEACHERS, 0)
    assert task.shown["ExitCode"] == f"{EXIT_REQUEUE}:0"
    assert not place.submission.exists()
    assert place.status()[TEACHERS, 0]["state"] == "interrupted"
    _resume(place, cluster)
    assert_as_undisturbed(place, undisturbed, cluster, TEACHERS, 0)
