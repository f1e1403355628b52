"""``./pipeline.sh status RUN``: where every task of a run stands.

Three things are asked: Slurm (the queue, and accounting where it answers), what the run has recorded of itself (jobs,
local tasks, heartbeats, logs), and the outputs. Each is enough to say something; none has to be there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arena_distill.pipeline.artifact_states import ArtifactState, Condition, Look
from arena_distill.pipeline.known_tasks import Key, known_tasks, never_starting
from arena_distill.pipeline.next_step import next_step
from arena_distill.pipeline.run_record import LocalTask, RunRecord, RunSettingsRecord, SubmittedJob
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.status_table import format_table
from arena_distill.pipeline.task_progress import TaskProgress, read_progress
from arena_distill.pipeline.task_status import State, TaskStatus, of_local, of_log, of_slurm, pending_words, seconds_of
from arena_distill.pipeline.variables import own, repository, settled
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import ArenaError, InputError
from arena_distill.runtime.slurm import TaskState
from arena_distill.runtime.stages import INFER_TEACHER_LOGITS, STAGES, Stage

TABLE = "table"
"""What step 4's line is of that is no fold's: the out-of-fold table, which the last fold makes."""

_CLOCKS_APART = 60.0  # seconds that the clocks of a node and of this machine may differ
_NOTHING = ArtifactState("missing")
_BY_OUTPUT: dict[Condition, State] = {
    "complete": "done", "partial": "interrupted", "stale": "incomplete", "missing": "not run",
}  # fmt: skip


@dataclass(frozen=True)
class RunStatus:
    """All of it."""

    run: str
    slurm: str  # what was to be had of Slurm, in words
    tasks: tuple[TaskStatus, ...]
    next: str

    def as_json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), indent=1, default=str)


@dataclass(frozen=True)
class _Asked:
    """What was found out before any line is written."""

    record: RunRecord
    jobs: Sequence[SubmittedJob]
    ran: Mapping[tuple[str, int | None], LocalTask]  # the last of each task on this machine
    states: Mapping[Key, TaskState]
    doomed: Collection[Key]  # of these, those that wait for what has failed
    look: Look

    def job_of(self, stage: str, task: int | None) -> SubmittedJob | None:
        """The last job that this task was submitted in."""
        mine = [job for job in self.jobs if job.stage == stage and (job.job_id, task) in job.keys]
        return mine[-1] if mine else None


def show_status(settings: PipelineSettings) -> int:
    """Print where a run stands; as JSON if asked for.

    Returns:
        0.

    Raises:
        InputError: there is nothing of this run.
    """
    found = run_status(settings)
    if getattr(settings, "pipeline_json", False):
        print(found.as_json())
        return 0
    print(f"run {found.run or 'without a name'}; {found.slurm}")
    print(format_table(found.tasks))
    print(f"\n-> {found.next}")
    return 0


def run_status(settings: PipelineSettings) -> RunStatus:
    """Where a run stands.

    Raises:
        InputError: there is nothing of this run.
    """
    record = RunRecord(settings.model_save)
    told = record.settings()
    if told is None and not settings.model_save.is_dir():
        raise InputError(f"{settings.model_save}: nothing of this run is there -> {_other_runs(settings)}")
    states, doomed, words = _ask_slurm(record)
    ran = {(task.stage, task.task): task for task in record.local_tasks()}
    asked = _Asked(record, record.jobs(), ran, states, doomed, Look(_environment(settings, told)))
    tasks = [line for stage in STAGES.values() for line in _lines(asked, stage)]
    tasks = _with_dependencies(asked, tasks)
    stages = told.stages if told is not None else list(STAGES)
    step = next_step(
        tasks, run=settings.run, asked=stages, begun=told is not None, report=settings.model_save / "report.html"
    )
    return RunStatus(settings.run, words, tuple(tasks), step)


def _environment(settings: PipelineSettings, told: RunSettingsRecord | None) -> dict[str, str]:
    """What the run was told, or, where it has no record, what this shell would tell it; never where it is now."""
    said = own(settled()) if told is None else told.profile_entries | told.variables
    here = {"RUN": settings.run, "OUTPUT_DIR": str(settings.output_dir)}
    return {name: value for name, value in said.items() if name not in ("PROFILE", *here)} | here


def _ask_slurm(record: RunRecord) -> tuple[dict[Key, TaskState], set[Key], str]:
    """The tasks that Slurm knows, those of them that wait in vain, and how it answered."""
    if not record.jobs():
        return {}, set(), "nothing of it was submitted to Slurm"
    if not slurm.available():
        return {}, set(), "Slurm does not answer here: states are those of the records and outputs"
    try:
        known = known_tasks(record)
    except ArenaError as error:
        return {}, set(), f"{error}; states are those of the records and outputs"
    active = sum(one.is_active for one in known)
    return {one.key: one.state for one in known}, never_starting(known), f"{active} queued or running in Slurm"


def _other_runs(settings: PipelineSettings) -> str:
    models = settings.output_dir / "model_save"
    runs = sorted(path.parent.name for path in models.glob("*/pipeline") if path.is_dir())
    known = f"runs that are: {', '.join(runs)}" if runs else "start one with ./pipeline.sh"
    return f"{known} (or correct OUTPUT_DIR)"


def _lines(asked: _Asked, stage: Stage) -> list[TaskStatus]:
    """The lines of one stage: what was submitted or ran of it, and what is there of its outputs."""
    artifacts = asked.look.states(stage.name)
    array = _array(asked, stage)
    if not stage.fans_out or set(artifacts) == {None}:
        return [_line(asked, stage, None, None, artifacts.get(None, _NOTHING))]
    folds = {fold: state for fold, state in artifacts.items() if fold is not None}
    if array == "shard":
        whole = _together(folds)
        lines = [_line(asked, stage, array, task, whole) for task in _tasks(asked, stage)]
    else:
        known = {task for task in _tasks(asked, stage) if task is not None}
        lines = [_line(asked, stage, "fold", fold, folds.get(fold, _NOTHING)) for fold in sorted(known | folds.keys())]
    if stage is INFER_TEACHER_LOGITS:
        table = artifacts.get(None, _NOTHING)
        lines.append(TaskStatus(stage.name, TABLE, None, _BY_OUTPUT[table.state], table))
    return lines


def _array(asked: _Asked, stage: Stage) -> str | None:
    """What the tasks of a stage are, by the last that was submitted or ran."""
    of_jobs = [(seconds_of(job.submitted), job.array) for job in asked.jobs if job.stage == stage.name]
    of_here = [(seconds_of(task.started), task.array) for task in asked.ran.values() if task.stage == stage.name]
    known = sorted(of_jobs + of_here, key=lambda one: one[0])
    return known[-1][1] if known else None


def _tasks(asked: _Asked, stage: Stage) -> list[int | None]:
    """Tasks of a stage that were ever submitted or run, as its last array counts them."""
    array = _array(asked, stage)
    known: set[int | None] = set()
    for job in asked.jobs:
        if job.stage == stage.name and job.array == array:
            known.update(task for _, task in job.keys)
    known.update(one.task for one in asked.ran.values() if one.stage == stage.name and one.array == array)
    return sorted(known, key=lambda task: -1 if task is None else task)


def _together(folds: Mapping[int, ArtifactState]) -> ArtifactState:
    complete = [state for state in folds.values() if state.state == "complete"]
    if folds and len(complete) == len(folds):
        return ArtifactState("complete")
    begun = complete or [state for state in folds.values() if state.state != "missing"]
    return ArtifactState("partial" if begun else "missing", f"{len(complete)} of {len(folds)} folds" if begun else "")


def _line(asked: _Asked, stage: Stage, array: str | None, task: int | None, artifact: ArtifactState) -> TaskStatus:
    job, ran = asked.job_of(stage.name, task), asked.ran.get((stage.name, task))
    if job is not None and ran is not None:  # the later of the two
        job, ran = (job, None) if seconds_of(job.submitted) >= seconds_of(ran.started) else (None, ran)
    several = array == "shard"
    fields: dict[str, Any]
    if job is not None and (known := asked.states.get((job.job_id, task))) is not None:
        fields = of_slurm(known, artifact, several=several, doomed=(job.job_id, task) in asked.doomed)
    elif job is not None:
        fields = of_log(job, task, repository(), artifact)
    elif ran is not None:
        fields = of_local(ran, artifact, several=several)
    else:
        fields = {"state": _BY_OUTPUT[artifact.state]}
    if not Path(fields.get("log") or "").is_file():  # a task that waits has none yet
        fields["log"] = ""
    line = TaskStatus(stage=stage.name, array=array, task=task, artifact=artifact, **fields)
    return replace(line, progress=_progress(asked, line))


def _progress(asked: _Asked, line: TaskStatus) -> TaskProgress | None:
    """Its heartbeat, if that is of its last attempt and says anything that its end does not."""
    if line.state in ("done", "not run", "pending"):
        return None
    beat = read_progress(asked.record.progress_directory, line.stage, line.task)
    if beat is None or beat.job_id not in ("", line.job.partition("_")[0]):
        return None
    since_start = line.elapsed_seconds
    if line.state == "running" and since_start is not None and beat.age_seconds > since_start + _CLOCKS_APART:
        return None  # of the attempt before
    return beat


def _with_dependencies(asked: _Asked, tasks: list[TaskStatus]) -> list[TaskStatus]:
    """The same lines, with the names of those that a task waits or waited for."""
    by_job: dict[str, dict[int | None, TaskStatus]] = {}
    for one in tasks:
        if one.job:
            by_job.setdefault(one.job.partition("_")[0], {})[one.task] = one
    return [_explained(asked, one, by_job) for one in tasks]


def _explained(asked: _Asked, one: TaskStatus, by_job: Mapping[str, Mapping[int | None, TaskStatus]]) -> TaskStatus:
    job = asked.job_of(one.stage, one.task)
    if job is None or not one.job or not job.depends or "Dependency" not in one.slurm_reason:
        return one
    others = pending_words(one, job, by_job, {other.job_id: other.stage for other in asked.jobs})
    if not others:
        return one
    said = "it waited for" if one.state == "cancelled" else "waits for"
    return replace(one, reason=f"{'waits in vain for' if one.in_vain else said} {others}")
