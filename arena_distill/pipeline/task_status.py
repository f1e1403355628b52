"""The state of one task, put together from what Slurm says, what the run recorded, its log and its outputs."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from arena_distill.pipeline.artifact_states import ArtifactState
from arena_distill.pipeline.run_record import LocalTask, SubmittedJob
from arena_distill.pipeline.task_logs import read_end
from arena_distill.pipeline.task_progress import TaskProgress
from arena_distill.runtime.errors import EXIT_REQUEUE
from arena_distill.runtime.slurm import TaskState
from arena_distill.runtime.stages import STAGES

State = Literal[
    "not run", "pending", "running", "suspended", "done", "incomplete", "interrupted", "failed", "cancelled",
    "timed out", "out of memory", "node failed", "preempted", "unknown",
]  # fmt: skip

WAITING: tuple[State, ...] = ("pending", "running", "suspended")
"""Will go on without anybody doing anything."""

_ENDS: dict[str, State] = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timed out",
    "DEADLINE": "timed out",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "PREEMPTED": "preempted",
}
_STARTED = {"RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING"}
_NO_REASON = {"NonZeroExitCode", "TimeLimit", "OutOfMemory"}  # said in better words, or by the state


@dataclass(frozen=True)
class TaskStatus:
    """One line of the table."""

    stage: str
    array: str | None  # what the task is: fold or shard
    task: int | None
    state: State
    artifact: ArtifactState  # of a shard that of all folds
    job: str = ""  # 12_3; empty where it is of no job
    slurm_state: str = ""  # in Slurm's word
    slurm_reason: str = ""  # likewise
    reason: str = ""
    in_vain: bool = False  # it waits for what has failed
    elapsed_seconds: int | None = None  # since its last start
    restarts: int = 0
    node: str = ""
    log: str = ""
    progress: TaskProgress | None = None

    @property
    def name(self) -> str:
        """For people: step 3 fold 2, step 4 table."""
        step = f"step {STAGES[self.stage].number}"
        parts = (step, self.array, None if self.task is None else str(self.task))
        return " ".join(part for part in parts if part)

    @property
    def is_waiting(self) -> bool:
        """Whether it will go on, or start, without anybody doing anything."""
        return self.state in WAITING

    @property
    def has_failed(self) -> bool:
        """Whether it was tried, and ended otherwise than well or by its user's wish."""
        tried = bool(self.job or self.node)
        return tried and not self.is_waiting and self.state not in ("done", "not run", "cancelled", "unknown")

    @property
    def is_complete(self) -> bool:
        """Whether its output is there, whatever became of its job."""
        return self.artifact.state == "complete"


def of_slurm(known: TaskState, artifact: ArtifactState, *, several: bool, doomed: bool) -> dict[str, Any]:
    """Fields that Slurm tells.

    Args:
        known: what it says.
        artifact: the task's output.
        doomed: it waits for what has failed, although Slurm may not have noticed yet.
        several: whether other tasks have a part in that output, so that this one may be done before it is complete.
    """
    state, reason = _state(known, artifact, several=several)
    end = read_end(Path(known.log)) if known.log and not known.active and state != "done" else None
    return {
        "state": state,
        "slurm_state": known.state,
        "slurm_reason": known.reason,
        "in_vain": known.active and doomed,
        "job": known.job_id if known.task is None else f"{known.job_id}_{known.task}",
        "reason": ": ".join(filter(None, (reason, end.words if end else ""))),
        "elapsed_seconds": known.elapsed_seconds or (None if state == "cancelled" else known.elapsed_seconds),
        "restarts": known.restarts,
        "node": known.node,
        "log": known.log,
    }


def _state(known: TaskState, artifact: ArtifactState, *, several: bool) -> tuple[State, str]:
    reason = "" if known.reason in _NO_REASON else known.reason
    if known.active:
        if known.state in _STARTED:
            return "running", ""
        unusual = "" if known.state == "PENDING" else known.state
        return ("suspended" if known.state in ("SUSPENDED", "STOPPED") else "pending"), reason or unusual
    code, _, signal = known.exit_code.partition(":")
    if known.state == "COMPLETED":
        if several or artifact.state in ("complete", "stale"):
            return "done", ""
        return "incomplete", "ended without an error, and its output is not complete"
    if artifact.state == "complete" and known.state == "CANCELLED":
        return "done", ""
    if known.state == "FAILED":
        if code == str(EXIT_REQUEUE):
            return "interrupted", "saved where it is, and was not requeued any more"
        return "failed", _exit_words(code, signal)
    return _ENDS.get(known.state, "failed"), reason


def _exit_words(code: str, signal: str) -> str:
    if code not in ("", "0"):
        return f"exit code {code}"
    return f"killed by signal {signal}" if signal not in ("", "0") else ""


def of_local(ran: LocalTask, artifact: ArtifactState, *, several: bool) -> dict[str, Any]:
    """Fields that the record of a local task tells."""
    code = ran.exit_code
    reason = ""
    state: State
    if ran.ended is None:
        here = ran.is_running
        state = "running" if here else "interrupted"
        reason = "" if here else f"its process ({ran.pid} on {ran.node}) is gone, or not to be seen from here"
        if not here and artifact.state == "complete":
            state, reason = "done", ""
    elif code == 0:
        state = "done" if several or artifact.state in ("complete", "stale") else "incomplete"
        reason = "" if state == "done" else "ended without an error, and its output is not complete"
    elif code == EXIT_REQUEUE:
        state, reason = "interrupted", "saved where it is"
    else:
        state, reason = "failed", f"exit code {code}"
    end = read_end(Path(ran.log)) if state in ("failed", "interrupted", "incomplete") else None
    return {
        "state": state,
        "reason": ": ".join(filter(None, (reason, end.words if end else ""))),
        "elapsed_seconds": _between(ran.started, ran.ended),
        "node": ran.node,
        "log": ran.log,
    }


def of_log(job: SubmittedJob, task: int | None, root: Path, artifact: ArtifactState) -> dict[str, Any]:
    """Fields of a job that Slurm has forgotten: its output and its log are all that is left of it."""
    log = log_path(job, task, root)
    end = read_end(log) if log is not None else None
    state: State
    if artifact.state == "complete":
        state, reason = "done", ""
    elif end is None:
        state, reason = "unknown", "Slurm has forgotten it, and it left no log: it may never have started"
    elif end.exit_code == 0:
        state, reason = "incomplete", "ended without an error, and its output is not complete"
    elif end.exit_code == EXIT_REQUEUE:
        state, reason = "interrupted", "saved where it is, and Slurm has forgotten it"
    elif end.exit_code is None:
        state, reason = "interrupted", "Slurm has forgotten it, and its log ends in the middle"
    else:
        state, reason = "failed", f"exit code {end.exit_code}"
    return {
        "state": state,
        "reason": ": ".join(filter(None, (reason, end.words if end and state != "done" else ""))),
        "job": job.job_id if task is None else f"{job.job_id}_{task}",
        "log": str(log) if log is not None else "",
    }


def log_path(job: SubmittedJob, task: int | None, root: Path) -> Path | None:
    """Where Slurm wrote a task's output, by the pattern that it was submitted with; None where there is nothing."""
    name = next((word.partition("=")[2] for word in job.command if word.startswith("--job-name=")), "*")
    known = {"x": name, "A": job.job_id, "a": "" if task is None else str(task), "%": "%"}
    known["j"] = job.job_id if task is None else "*"  # a task has a number of its own, which nobody knows any more
    pattern = re.sub(r"%\d*([a-zA-Z%])", lambda match: known.get(match[1], "*"), job.log)
    with suppress(ValueError, OSError, NotImplementedError):
        path = Path(pattern)
        if "*" not in pattern:
            return root / path if (root / path).is_file() else None
        if not path.is_absolute() and (found := sorted(root.glob(pattern))) and task is None:
            return found[-1]
    return None


def seconds_of(text: str) -> float:
    """An ISO time as seconds since 1970; 0 for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _between(started: str, ended: str | None) -> int | None:
    first, last = seconds_of(started), seconds_of(ended) if ended else time.time()
    return max(0, round(last - first)) if first and last else None


def pending_words(
    status: TaskStatus,
    job: SubmittedJob,
    by_job: Mapping[str, Mapping[int | None, TaskStatus]],
    stages: Mapping[str, str],
) -> str:
    """Why a task waits or waited for others, by name: those that are not done, or that failed.

    Args:
        status: of the task.
        job: that it is of.
        by_job: all tasks of the run, by job id and task.
        stages: of every job of the run, by job id.
    """
    words: list[str] = []
    for dependency in job.depends:
        kind, *ids = dependency.split(":")
        for job_id in ids:
            tasks = by_job.get(job_id, {})
            paired = kind == "aftercorr" and status.task in tasks
            mine = [tasks[status.task]] if paired else list(tasks.values())
            left = [one for one in mine if one.state != "done"]
            bad = [one for one in left if not one.is_waiting or one.in_vain]
            words += _named(bad if bad and (status.state == "cancelled" or status.in_vain) else left)
            if not mine:  # submitted anew since
                words.append(
                    f"step {STAGES[stages[job_id]].number} (job {job_id})" if job_id in stages else f"job {job_id}"
                )
    return ", ".join(dict.fromkeys(words))


def _named(tasks: Sequence[TaskStatus]) -> list[str]:
    """Each by name with its state; several of a stage that merely take their time together."""
    if len(tasks) > 1 and all(task.is_waiting and not task.in_vain for task in tasks):
        return [f"step {STAGES[tasks[0].stage].number} ({len(tasks)} {tasks[0].array or 'task'}s)"]
    return [f"{task.name} ({task.state})" for task in tasks]
