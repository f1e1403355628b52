"""Signs of life in a small file, for whoever watches the job: how far it is, and whether it gets on at all.

``$HEARTBEAT_FILE`` names the file; without it nothing is written. It never stands in the way of the work: a disk that
is full or gone only means that nobody sees how it goes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT_FILE = "HEARTBEAT_FILE"
EVERY_SECONDS = 2.0


class Heartbeat:
    """What one process has to say of itself.

    Args:
        file: where it says so.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.saved = _saved_before(file)  # by earlier processes of the same job: it only ever grows
        self._said: dict[str, Any] = {"task": "", "done": 0, "total": 0, "unit": "", "started": time.time()}
        self._unsaid = False
        self._next = 0.0

    def say(self, **figures: Any) -> None:
        """Take new figures, and write them if the last time is long enough ago."""
        self._said |= figures
        self._unsaid = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write what is known now, if anything is new; a failure is nobody's concern."""
        if not self._unsaid:
            return
        self._next = time.monotonic() + EVERY_SECONDS
        document = {**self._said, "saved": self.saved, "updated": time.time(), **_whereabouts()}
        fresh = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with suppress(OSError):
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_text(json.dumps(document) + "\n", "utf-8")
                fresh.replace(self.file)
                self._unsaid = False
            finally:
                fresh.unlink(missing_ok=True)


def beat(
    task: str,
    done: int,
    total: int,
    unit: str,
    *,
    started: float,
    rows_per_second: float,
    tokens_per_second: float,
    seconds_left: float | None,
) -> None:
    """Say how far the work is.

    Args:
        task: what is being done.
        done: units finished, those of earlier runs that this one goes on from too.
        total: units in all.
        unit: such as rows or steps.
        started: when this process began with it, seconds since 1970.
        rows_per_second: rows (sequences, layers …) finished per second of wall time.
        tokens_per_second: real tokens, likewise.
        seconds_left: estimated; None while unknown.
    """
    if (heartbeat := _own()) is not None:
        heartbeat.say(
            task=task,
            done=done,
            total=total,
            unit=unit,
            started=started,
            rows_per_second=round(rows_per_second, 3),
            tokens_per_second=round(tokens_per_second, 1),
            seconds_left=None if seconds_left is None else round(seconds_left, 1),
        )


def keep(count: int) -> None:
    """Count what the next run need not do again: steps in a new checkpoint, a scored batch, a finished output."""
    if count > 0 and (heartbeat := _own()) is not None:
        heartbeat.saved += count
        heartbeat.say()


def flush() -> None:
    """Write what has not been written yet; to be called at the end, for a job's fate hangs on what it has saved."""
    if (heartbeat := _own()) is not None:
        heartbeat.write()


_of_process: Heartbeat | None = None


def _own() -> Heartbeat | None:
    global _of_process
    name = os.environ.get(HEARTBEAT_FILE)
    if not name or os.environ.get("RANK") not in (None, "", "0"):  # under torchrun one process speaks for all
        return None
    if _of_process is None or _of_process.file != Path(name):
        _of_process = Heartbeat(Path(name))
    return _of_process


def _saved_before(file: Path) -> int:
    try:
        return int(json.loads(file.read_text("utf-8"))["saved"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _whereabouts() -> dict[str, Any]:
    variables = os.environ
    return {
        "pid": os.getpid(),
        "node": variables.get("SLURMD_NODENAME") or socket.gethostname(),
        "job_id": variables.get("SLURM_ARRAY_JOB_ID") or variables.get("SLURM_JOB_ID", ""),
        "array_task": variables.get("SLURM_ARRAY_TASK_ID", ""),
    }
