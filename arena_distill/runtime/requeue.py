"""A Slurm job that was stopped before its end goes back into the queue: ``python -m arena_distill.runtime.requeue``.

``scripts/supervise.sh`` calls it inside the job, before that ends with exit code 75. What Slurm says of the job at that
moment was seen with Slurm 22.05, after

- the signal before the time limit: ``RUNNING``;
- the time limit itself: ``COMPLETING``, ``Reason=TimeLimit``;
- preemption with ``PreemptMode=CANCEL``: ``COMPLETING``, and a ``PreemptTime``;
- preemption with ``PreemptMode=REQUEUE``, or ``scontrol requeue``: ``COMPLETING``, and one more restart;
- a node set down: ``PENDING``, and one more restart;
- ``scancel``: ``COMPLETING``, and nothing else. ``scontrol requeue`` would bring such a job back to life.

So a job that is ending is requeued only where Slurm says that it was not its user who ended it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import ArenaError

PATIENCE_SECONDS = 120.0
"""How long a controller that does not answer is asked again: it may be being restarted."""

_PAUSE_SECONDS = 2.0
_CALL_SECONDS = 30.0
_REFUSALS = re.compile(r"invalid job id|permission denied|presently disabled|not permitted", re.IGNORECASE)
_ALIVE = frozenset({"RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"})
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_ENDED_BY_SLURM = frozenset({"TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})


class RefusedError(ArenaError):
    """Slurm will not requeue the job, however often it is asked."""


class Fate(Enum):
    """What is to become of a job that was stopped."""

    REQUEUE = "is to be requeued"
    ALREADY = "was requeued by Slurm"
    ENDED = "was ended by its user"


@dataclass(frozen=True)
class JobRecord:
    """What ``scontrol show job`` says of a job."""

    states: frozenset[str]
    reason: str
    restarts: int
    preempted: bool

    def fate(self, restarts_at_start: int) -> Fate:
        """What is to become of it; ``restarts_at_start`` is the ``SLURM_RESTART_COUNT`` that it began with."""
        if self.restarts > restarts_at_start or self.states & _WAITING:
            return Fate.ALREADY
        ended_by_slurm = self.states & _ENDED_BY_SLURM or self.reason == "TimeLimit" or self.preempted
        return Fate.REQUEUE if self.states & _ALIVE or ended_by_slurm else Fate.ENDED


def read_job(text: str) -> JobRecord:
    """Read what ``scontrol -o show job`` prints of one job.

    Raises:
        ArenaError: it says nothing of a job.
    """
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)(\w+)=(\S*)", text.strip().partition("\n")[0]):
        fields.setdefault(name, value)
    if "JobState" not in fields:
        raise ArenaError(f"scontrol show job says {' '.join(text.split())[:200]!r}")
    return JobRecord(
        states=frozenset(fields["JobState"].split(",")),
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts") or 0),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", ""),
    )


def requeue(job: str, restarts_at_start: int, allow: Callable[[], None], *, patience: float = PATIENCE_SECONDS) -> Fate:
    """Put a job back into the queue, unless it is there already or was ended by its user.

    Args:
        job: its id; of an array task ``12_3``, for the array's own id may stand for all of its tasks.
        restarts_at_start: how often it had been requeued when this run of it began.
        allow: called before it is requeued; raises a RefusedError if it must not be.
        patience: seconds for which a controller that does not answer is asked again.

    Raises:
        RefusedError: Slurm or ``allow`` refuses, in its own words.
        ArenaError: Slurm did not answer in that time.
    """
    deadline = time.monotonic() + patience
    while True:
        try:  # from the beginning each time: it may have been cancelled meanwhile
            fate = read_job(_scontrol("-o", "show", "job", job)).fate(restarts_at_start)
            if fate is Fate.REQUEUE:
                allow()
                _scontrol("requeue", job)
            return fate
        except RefusedError:
            raise
        except ArenaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _scontrol(*words: str) -> str:
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=_CALL_SECONDS)
    except FileNotFoundError as error:
        raise RefusedError("there is no scontrol on this node") from error
    except subprocess.TimeoutExpired as error:
        raise ArenaError(f"scontrol {words[0]} did not answer in {_CALL_SECONDS:.0f} s") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"scontrol ended with {done.returncode}"
        raise RefusedError(said) if _REFUSALS.search(said) else ArenaError(said)
    return done.stdout


@dataclass(frozen=True)
class Requeues:
    """How often in a row a job was requeued without getting further, and how far it had come."""

    in_a_row: int
    saved: Mapping[str, int]  # the most that each heartbeat and task has told of

    def after(self, saved: Mapping[str, int]) -> Requeues:
        """The same with what the heartbeats tell now: more saved, or another task begun, is progress."""
        further = any(
            count > self.saved.get(task, 0) or (self.saved and task not in self.saved) for task, count in saved.items()
        )
        most = {task: max(self.saved.get(task, 0), saved.get(task, 0)) for task in {**self.saved, **saved}}
        return Requeues(0 if further else self.in_a_row, most)


def read_saved(progress: Path, environment: Mapping[str, str]) -> dict[str, int]:
    """How far a job is by its heartbeats: what each says that a requeue would keep, by file and task.

    Args:
        progress: the directory of heartbeats, of this job and of others.
        environment: Slurm's variables of this job.
    """
    own = {environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_ARRAY_JOB_ID", "")} - {""}
    array_task = environment.get("SLURM_ARRAY_TASK_ID", "")
    saved: dict[str, int] = {}
    for path in sorted(progress.glob("[!.]*.json")):
        beat = _read(path)
        if str(beat.get("job_id", "")) in own and str(beat.get("array_task") or "") in ("", array_task):
            saved[f"{path.name}: {beat.get('task', '')}"] = _number(beat.get("saved"))
    return saved


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class RequeueFile:
    """Where the requeues of a job are counted; the next run of the same job finds it."""

    path: Path
    most: int  # in a row without progress

    def read(self) -> Requeues:
        """What was counted so far; nothing, if there is no such file or it is damaged."""
        found = _read(self.path)
        saved = found.get("saved")
        counts = {str(task): _number(count) for task, count in saved.items()} if isinstance(saved, dict) else {}
        return Requeues(_number(found.get("in_a_row")), counts)

    def count(self, now: Requeues) -> None:
        """Count one more.

        Raises:
            RefusedError: there were too many.
        """
        if now.in_a_row >= self.most:
            raise RefusedError(
                f"in {now.in_a_row} runs in a row it saved nothing new (MAX_REQUEUES={self.most}): give it more time "
                "(SBATCH_TIMELIMIT), or let it save more often"
            )
        write_atomically(self.path, json.dumps({"in_a_row": now.in_a_row + 1, "saved": now.saved}) + "\n")


def main() -> int:
    """Find out what became of the job, requeue it if that is due, and say so.

    Returns:
        0 if it goes on by itself, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m arena_distill.runtime.requeue")
    parser.add_argument("--job", required=True, help="its id, such as 12 or 12_3")
    parser.add_argument("--most", required=True, help="requeues in a row without progress")
    parser.add_argument("--progress", type=Path, required=True, help="directory of its heartbeats")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # requeueing ends all processes of the job, scontrol before it has answered
    job = args.job
    try:
        if not (args.most.isascii() and args.most.isdecimal()):
            raise RefusedError(f"MAX_REQUEUES={args.most} is no number: 0 or more")
        file = RequeueFile(args.progress / f".requeued_{job}.json", int(args.most))
        now = file.read().after(read_saved(args.progress, os.environ))
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        fate = requeue(job, restarts, lambda: file.count(now))
    except (ArenaError, OSError) as error:
        print(f"error: job {job} is not requeued: {error} -> submit it again: it goes on from what is saved")
        return 1
    if fate is Fate.ENDED:
        print(f"job {job} was cancelled, and is not requeued; submitted again, it goes on from what is saved")
        return 1
    said = f"job {job} is requeued, and goes on from what is saved"
    if fate is Fate.REQUEUE and now.in_a_row:
        said += f"; {now.in_a_row + 1} of at most {args.most} times in a row without progress"
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
