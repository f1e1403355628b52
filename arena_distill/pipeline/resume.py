"""``./pipeline.sh resume RUN``: what is not complete, and what depends on it, as the run was told when it began."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from arena_distill.pipeline.command_line import OF_ONE_COMMAND, parse
from arena_distill.pipeline.completeness import incomplete
from arena_distill.pipeline.dry_run import show_plan
from arena_distill.pipeline.known_tasks import KnownTask, known_tasks, never_starting
from arena_distill.pipeline.machine import cores
from arena_distill.pipeline.plan import Plan, StagePlan, make_plan
from arena_distill.pipeline.run_record import RunRecord, RunSettingsRecord
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.start import carry_out
from arena_distill.pipeline.submit import Awaited, refuse_active, unavailable
from arena_distill.pipeline.variables import own
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.settings import PROFILE_VARIABLE, profile_entries
from arena_distill.runtime.stages import RESOURCE_VARIABLES, STAGES

Key = tuple[str, int | None]

_ABOUT_HOW = {*RESOURCE_VARIABLES, "RUN", "OUTPUT_DIR", PROFILE_VARIABLE}
_ONCE = ("FORCE", "INFER_FORCE_REGEN", "STUDENT_OVERWRITE")  # what was forced then is not to be done a second time


def resume(settings: PipelineSettings, argv: Sequence[str]) -> int:
    """Submit, or run here, what is missing of a run. Where it went before, unless the command line says otherwise.

    Args:
        settings: say which run.
        argv: the command line, to be read again with what the run was told.

    Returns:
        The exit code: 0 also when nothing is left to do.

    Raises:
        SettingsError, ArenaError: it cannot go on, or is under way already.
    """
    record = RunRecord(settings.model_save)
    told = restore(record)
    settings = _as_it_began(parse(argv), told)
    plan = make_plan(settings, cores=None if settings.pipeline_slurm else cores())
    if settings.pipeline_slurm and not slurm.available():
        raise unavailable()
    if settings.pipeline_dry_run:
        going_on, _ = split(record)
        return show_plan(settings, _rest(plan, going_on), awaited(going_on))
    with record.locked("is being resumed" if settings.pipeline_slurm else "is running here"):
        if not settings.pipeline_slurm:
            refuse_active(record)
        going_on, in_vain = split(record)
        rest = _rest(plan, going_on)
        if in_vain:
            print(f"cancelling {len(in_vain)} that wait for what failed")
            slurm.cancel([_name(one.key) for one in in_vain])
        if not rest.stages:
            said = f"nothing to add: the {len(going_on)} that are queued or running are all that is missing"
            steps = ", ".join(map(str, settings.numbers))
            print(said if going_on else f"nothing left to do: all is complete that this run comprises (steps {steps})")
            return 0
        if going_on:
            print(f"left as they are: {len(going_on)} that are queued or running")
        return carry_out(settings, rest, record, awaited(going_on))


def restore(record: RunRecord) -> RunSettingsRecord:
    """Put the settings that a run began with into the environment. Where and with how much it runs may be new.

    Raises:
        SettingsError: nothing was ever started, or the environment or the profile says something else now.
    """
    told = record.settings()
    run = record.name
    if told is None:
        raise SettingsError(
            f"{record.directory}: nothing was ever started there -> check RUN and OUTPUT_DIR, or start: ./pipeline.sh"
        )
    again = f"to go on with other settings, start it anew: RUN={run} ./pipeline.sh (what they do not touch stays)"
    if os.environ.get(PROFILE_VARIABLE, told.profile) not in ("", told.profile):
        raise SettingsError(
            f"PROFILE={os.environ[PROFILE_VARIABLE]}: run {run} began with PROFILE={told.profile} -> unset it; {again}"
        )
    os.environ[PROFILE_VARIABLE] = told.profile
    now = {name: value for name, value in own(os.environ).items() if _decides(name)}
    then = {name: value for name, value in told.variables.items() if _decides(name)}
    if changed := [name for name, value in now.items() if then.get(name) != value]:
        name = changed[0]
        raise SettingsError(f"{name}={now[name]}: run {run} began with {then.get(name, 'none')} -> unset it; {again}")
    entries = profile_entries(told.profile) if told.profile else {}
    differing = [
        f"{name} {told.profile_entries.get(name, 'unset')} -> {entries.get(name, 'unset')}"
        for name in sorted(entries.keys() | told.profile_entries.keys())
        if _decides(name) and entries.get(name) != told.profile_entries.get(name)
    ]
    if differing:
        raise SettingsError(
            f"profile {told.profile} is not what run {run} began with: {', '.join(differing)} -> put it back; {again}"
        )
    os.environ.update({name: value for name, value in told.variables.items() if not os.environ.get(name)})
    for name in _ONCE:
        os.environ.pop(name, None)
    return told


def _decides(name: str) -> bool:
    """Whether a setting has a say in what comes out."""
    return name.upper() not in _ABOUT_HOW and name.upper() not in OF_ONE_COMMAND and name not in _ONCE


def remaining(plan: Plan, left: Collection[Key], missing: Callable[[StagePlan], Collection[int | None]]) -> Plan:
    """The part of a plan that is still to be done: tasks that are not complete, and all that wait for them.

    Args:
        plan: the whole run.
        left: tasks that are queued or running already.
        missing: tasks of a stage whose output is not there, made with these settings and inputs.
    """
    again: set[Key] = set()
    stages = []
    for one in plan.stages:
        not_there = {*missing(one), *(task for task in one.tasks if _waits_for(one, task, again))}
        again |= {(one.stage.name, task) for task in not_there}
        if tasks := tuple(task for task in one.tasks if task in not_there and (one.stage.name, task) not in left):
            stages.append(replace(one, tasks=tasks))
    return replace(plan, stages=tuple(stages))


def _waits_for(one: StagePlan, task: int | None, again: Collection[Key]) -> bool:
    return any(
        stage == dependency.stage and (not dependency.paired or number == task)
        for dependency in one.depends
        for stage, number in again
    )


def awaited(known: Collection[KnownTask]) -> dict[str, list[Awaited]]:
    """Tasks that are queued or running, by stage, as later ones may wait for them."""
    found: dict[str, list[Awaited]] = {}
    jobs = {one.job.job_id: one.job for one in known}
    active = {one.key for one in known}
    for job_id, job in jobs.items():
        tasks = tuple(task for key, task in job.keys if (key, task) in active)
        found.setdefault(job.stage, []).append(Awaited(job_id, tasks, len(tasks) == len(job.keys)))
    return found


def split(record: RunRecord) -> tuple[list[KnownTask], list[KnownTask]]:
    """Tasks that are queued or running: those that will go on, and those that wait in vain."""
    known = known_tasks(record)
    doomed = never_starting(known)
    active = [one for one in known if one.is_active]
    return [one for one in active if one.key not in doomed], [one for one in active if one.key in doomed]


def _rest(plan: Plan, going_on: Collection[KnownTask]) -> Plan:
    left = {(one.job.stage, one.state.task) for one in going_on}
    return remaining(plan, left, lambda one: incomplete(one.stage.name, one.tasks, {**os.environ, **one.environment}))


def _as_it_began(settings: PipelineSettings, told: RunSettingsRecord) -> PipelineSettings:
    """With the stages and folds that the run comprises, of which the command line may name fewer."""
    of_run = {STAGES[name].number for name in told.stages}
    numbers = [number for number in settings.numbers if number in of_run]
    folds = [fold for fold in settings.fold_numbers if fold in told.folds]
    if not numbers or not folds:
        raise SettingsError(f"run {told.run} has none of these steps or folds -> start them with ./pipeline.sh")
    return settings.model_copy(
        update={
            "pipeline_skip": ",".join(str(stage.number) for stage in STAGES.values() if stage.number not in numbers),
            "pipeline_folds": ",".join(map(str, folds)),
            "pipeline_slurm": settings.pipeline_slurm if "pipeline_slurm" in settings.model_fields_set else told.slurm,
        }
    )


def _name(key: Key) -> str:
    job_id, task = key
    return job_id if task is None else f"{job_id}_{task}"
