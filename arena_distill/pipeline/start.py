"""A run begins: its plan is made and recorded, and its stages run here or go to Slurm."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from arena_distill.pipeline.command_line import OF_ONE_COMMAND
from arena_distill.pipeline.machine import Machine, cores, gpu_count
from arena_distill.pipeline.plan import Plan, make_plan, threads
from arena_distill.pipeline.reproduce import write_reproduce
from arena_distill.pipeline.run_record import RunRecord, RunSettingsRecord, now
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.pipeline.submit import Awaited, refuse_active, submit_plan, unavailable
from arena_distill.pipeline.variables import own, profile_hash, settled
from arena_distill.runtime import slurm
from arena_distill.runtime.artifacts import git_revision
from arena_distill.runtime.settings import PROFILE_VARIABLE, profile_entries
from arena_distill.runtime.stages import STAGES


def start(settings: PipelineSettings) -> int:
    """Run the chain here, or submit it.

    Returns:
        The exit code: that of the first task that failed.

    Raises:
        SettingsError, ArenaError: it cannot start, or is under way already.
    """
    plan = make_plan(settings, cores=None if settings.pipeline_slurm else cores())
    for note in plan.notes:
        print(f"note: {note}")
    if settings.pipeline_slurm and not slurm.available():
        raise unavailable()
    record = RunRecord(settings.model_save)
    with record.locked(doing(settings)):
        refuse_active(record)
        remember(settings, plan, record)
        return carry_out(settings, plan, record)


def doing(settings: PipelineSettings) -> str:
    """What one who comes meanwhile is told."""
    return "is being submitted" if settings.pipeline_slurm else "is running here"


def carry_out(
    settings: PipelineSettings,
    plan: Plan,
    record: RunRecord,
    already: Mapping[str, Sequence[Awaited]] | None = None,
) -> int:
    """Submit a plan, or run it here. To be called under the record's lock.

    Returns:
        The exit code.

    Raises:
        SettingsError: see ``submit_plan``.
    """
    if not settings.pipeline_slurm:
        from arena_distill.pipeline.local import run_locally

        machine = Machine(cores(), gpu_count(), settings.pipeline_jobs)
        return run_locally(plan, record, settings.output_dir / "logs", machine)
    for line in submit_plan(plan, record, already=already):
        print(line)
    run = f" {record.name}" if record.name else ""
    print(f"submitted: ./pipeline.sh status{run} shows how it goes, cancel{run} ends it, resume{run} goes on")
    return 0


def remember(settings: PipelineSettings, plan: Plan, record: RunRecord) -> None:
    """Note what the run is told; what earlier commands asked of the same run stays part of it."""
    earlier = record.settings()
    profile = os.environ.get(PROFILE_VARIABLE, "")
    stages = {one.stage.name for one in plan.stages} | set(earlier.stages if earlier else ())
    variables, here = settled(), None if settings.pipeline_slurm else cores()
    told = RunSettingsRecord(
        run=settings.run,
        began=now(),
        slurm=settings.pipeline_slurm,
        stages=[name for name in STAGES if name in stages],
        folds=sorted({*settings.fold_numbers, *(earlier.folds if earlier else ())}),
        variables={name: value for name, value in own(os.environ).items() if name.upper() not in OF_ONE_COMMAND},
        profile=profile,
        profile_sha256=profile_hash(profile),
        profile_entries=profile_entries(profile) if profile else {},
        threads={name: threads(stage, variables, here) for name, stage in STAGES.items()},
        git_revision=git_revision(),
        seed=settings.seed,
    )
    record.write_settings(told)
    write_reproduce(record, told)
