"""The last line of a status: what its reader does next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arena_distill.pipeline.task_status import TaskStatus

_HELD = ("JobHeldUser", "JobHeldAdmin", "REQUEUE_HOLD", "SPECIAL_EXIT", "launch_failed_requeued_held")
_NEVER_STARTS = {
    "PartitionTimeLimit": "SBATCH_TIMELIMIT",
    "PartitionNodeLimit": "SBATCH_PARTITION",
    "PartitionDown": "SBATCH_PARTITION",
    "PartitionInactive": "SBATCH_PARTITION",
    "PartitionConfig": "SBATCH_PARTITION",
    "AccountNotAllowed": "SBATCH_ACCOUNT",
    "InvalidAccount": "SBATCH_ACCOUNT",
    "QOSNotAllowed": "SBATCH_QOS",
    "InvalidQOS": "SBATCH_QOS",
    "BadConstraints": "SBATCH_GRES, CPUS_PER_TASK, SBATCH_MEM_PER_NODE or SBATCH_CONSTRAINT",
    "NodeDown": "SBATCH_PARTITION",
}
"""Reasons of Slurm's for which a job waits forever where limits are not enforced at submission."""


def next_step(tasks: Sequence[TaskStatus], *, run: str, asked: Sequence[str], begun: bool, report: Path) -> str:
    """One line.

    Args:
        tasks: every line of the table.
        run: its name.
        asked: stages that the run comprises.
        begun: whether ``./pipeline.sh`` has a record of it.
        report: where the report is, once there is one.
    """
    pipeline = f"{f'RUN={run} ' if run else ''}./pipeline.sh"
    again = f"./pipeline.sh resume {run}".rstrip() if begun else pipeline
    cancel = f"./pipeline.sh cancel {run}".rstrip()
    mine = [task for task in tasks if task.stage in asked]
    waiting = [task for task in mine if task.is_waiting]
    if held := [task for task in waiting if task.slurm_reason in _HELD or task.slurm_state in _HELD]:
        return f"{_names(held)} held: `scontrol release {held[0].job}` lets it go, `{cancel}` ends the run"
    for task in waiting:
        if setting := _NEVER_STARTS.get(task.slurm_reason):
            return f"{task.name} will not start ({task.slurm_reason}): `{cancel}`, change {setting}, then `{again}`"
    if bad := [task for task in mine if task.has_failed and not task.is_complete]:
        meanwhile = " (what still runs may go on)" if any(not task.in_vain for task in waiting) else ""
        return f"{_names(bad)} {bad[0].state}: mend what its line says, then `{again}`{meanwhile}"
    if vain := [task for task in waiting if task.in_vain]:
        return f"{_names(vain)} wait in vain: `{again}` puts that right"
    for task in waiting:
        if task.state == "running" and task.progress is not None and task.progress.silent:
            minutes = f"{task.progress.age_seconds / 60:.0f} min"
            requeue = f"; `scontrol requeue {task.job}` starts it again from its last checkpoint" if task.job else ""
            return f"{task.name} has given no sign for {minutes}: look at its log{requeue}"
    if waiting:
        return f"wait, and ask again; `{cancel}` ends it"
    left = [task for task in mine if not task.is_complete and not (task.array == "shard" and task.state == "done")]
    if left:
        return f"not complete ({_names(left)}): `{again}` goes on"
    if any(not task.is_complete for task in tasks if task.stage not in asked):
        return f"complete as far as it was asked for; `{pipeline}` does the rest"
    return f"complete: see {report}" if report.is_file() else "complete"


def _names(tasks: Sequence[TaskStatus]) -> str:
    names = [task.name for task in tasks]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
