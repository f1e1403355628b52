"""The tasks of a run that Slurm still knows, and which of those that wait will never start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arena_distill.pipeline.run_record import RunRecord, SubmittedJob
from arena_distill.runtime import slurm
from arena_distill.runtime.slurm import TaskState

Key = tuple[str, int | None]
_NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class KnownTask:
    """A submitted task and what Slurm says of it."""

    job: SubmittedJob
    state: TaskState

    @property
    def key(self) -> Key:
        """As ``slurm.task_states`` has it."""
        return self.state.job_id, self.state.task

    @property
    def is_active(self) -> bool:
        """Queued or running."""
        return self.state.active

    @property
    def has_failed(self) -> bool:
        """Ended, and not well."""
        return not self.is_active and self.state.state != "COMPLETED"


def known_tasks(record: RunRecord) -> list[KnownTask]:
    """Every task of this run that Slurm has not forgotten; none where there is no Slurm.

    Raises:
        ArenaError: Slurm is here and does not answer, so nobody knows.
    """
    jobs = {job.job_id: job for job in record.jobs()}
    if not jobs:
        return []
    if shutil.which("scontrol") is None:
        print(f"note: {len(jobs)} jobs of this run were submitted to Slurm, of which this machine knows nothing")
        return []
    states = slurm.task_states(jobs).values()
    return [KnownTask(jobs[state.job_id], state) for state in states if _is_ours(jobs[state.job_id], state)]


def never_starting(known: Sequence[KnownTask]) -> set[Key]:
    """Waiting tasks that wait for one that failed, or for one that waits so; Slurm finds that out one by one."""
    by_job: dict[str, list[KnownTask]] = {}
    for one in known:
        by_job.setdefault(one.state.job_id, []).append(one)
    doomed = {one.key for one in known if one.is_active and _NEVER in one.state.reason}
    while True:
        more = {
            one.key
            for one in known
            if one.state.state == "PENDING" and one.key not in doomed and _waits_in_vain(one, by_job, doomed)
        }
        if not more:
            return doomed
        doomed |= more


def _waits_in_vain(one: KnownTask, by_job: Mapping[str, Sequence[KnownTask]], doomed: set[Key]) -> bool:
    for dependency in one.job.depends:
        kind, *ids = dependency.split(":")
        for word in ids:
            job_id, _, task = word.partition("_")
            for other in by_job.get(job_id, ()):
                counts = task in ("", str(other.state.task)) and (
                    kind != "aftercorr" or other.state.task == one.state.task
                )
                if counts and (other.has_failed or other.key in doomed):
                    return True
    return False


def _is_ours(job: SubmittedJob, state: TaskState) -> bool:
    """Whether it is our job, and not one that got its number after Slurm had lost its memory: its log says."""
    pattern, names = Path(job.log).name, [word.partition("=")[2] for word in job.command if "--job-name=" in word]
    if not state.log or "%x" not in pattern or not names:
        return True
    return Path(state.log).name.startswith(pattern.partition("%x")[0] + names[-1])
