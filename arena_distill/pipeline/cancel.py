"""``./pipeline.sh cancel RUN``: ends what is queued or running of one run, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import time

from arena_distill.pipeline.known_tasks import known_tasks
from arena_distill.pipeline.run_record import RunRecord
from arena_distill.pipeline.settings import PipelineSettings
from arena_distill.runtime import slurm
from arena_distill.runtime.errors import ArenaError, SettingsError

_PATIENCE_SECONDS = 360.0  # a local task may take five minutes to save where it is


def cancel(settings: PipelineSettings) -> int:
    """End a run's jobs and its local tasks; what is finished stays.

    Raises:
        SettingsError: there is no such run.
        ArenaError: Slurm does not answer, or the run is running on another machine.
    """
    record = RunRecord(settings.model_save)
    if not record.directory.is_dir():
        raise SettingsError(
            f"{record.directory}: nothing was ever started there -> check RUN and OUTPUT_DIR, or ./pipeline.sh status"
        )
    ended = _end_local(record)
    active = [one for one in known_tasks(record) if one.is_active]
    jobs = list(dict.fromkeys(one.state.job_id for one in active))
    slurm.cancel(jobs)
    for job_id in jobs:
        of_job = [one for one in active if one.state.job_id == job_id]
        print(f"cancelled {job_id}  {of_job[0].job.stage}  ({len(of_job)} queued or running)")
    if not jobs and not ended:
        print("nothing of this run is queued or running")
    else:
        print(f"what is finished stays -> ./pipeline.sh resume {settings.run}".rstrip() + "   goes on")
    return 0


def _end_local(record: RunRecord) -> bool:
    """Ask the process that runs this run on this machine to end, and wait until it has."""
    if not record.is_locked():
        return False
    held = record.holder() or {}
    pid, node = int(held.get("pid", 0)), str(held.get("node", ""))
    if node != socket.gethostname() or not pid:
        raise ArenaError(f"this run {held.get('what', 'is busy')} on {node or 'another machine'} -> cancel it there")
    print(f"asking process {pid} to end, after it has saved where it is")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while record.is_locked():
        if time.monotonic() > deadline:
            raise ArenaError(f"process {pid} has not ended in {_PATIENCE_SECONDS:.0f} s -> kill {pid}")
        time.sleep(0.5)
    return True
