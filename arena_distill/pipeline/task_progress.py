"""How far a task has come, by the heartbeat that its worker leaves."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.runtime.stages import INFER_TEACHER_LOGITS

SILENT_SECONDS = 180.0
"""A heartbeat older than this, and than five units of work take, is worth a look: its worker may hang."""


@dataclass(frozen=True)
class TaskProgress:
    """A heartbeat."""

    task: str  # what the worker calls it
    done: int
    total: int
    unit: str  # rows, steps ...
    rows_per_second: float  # of steps the rows in them; of anything else the units
    seconds_left: float | None  # from now; None where unknown
    unit_seconds: float  # that one unit takes; 0 where unknown
    age_seconds: float  # since it was written
    job_id: str  # empty where Slurm had no part in it

    @property
    def silent(self) -> bool:
        """Whether it has given no sign for long."""
        return self.age_seconds > max(SILENT_SECONDS, 5 * self.unit_seconds)


def read_progress(directory: Path, stage: str, task: int | None) -> TaskProgress | None:
    """The latest heartbeat of a task; None where it has left none.

    Args:
        directory: of the run's heartbeats.
        stage: its name.
        task: fold or shard.
    """
    names = [stage] if task is None else [f"{stage}_fold_{task}", f"{stage}_task_{task}"]
    if stage == INFER_TEACHER_LOGITS.name and task is not None:
        names.append(f"step4_infer_fold_fold_{task}")  # the same work by the script for one fold
    found = [beat for name in names if (beat := _read(directory / f"{name}.json"))]
    return min(found, key=lambda beat: beat.age_seconds, default=None)


def _read(path: Path) -> TaskProgress | None:
    try:
        said: dict[str, Any] = json.loads(path.read_text("utf-8"))
        age = max(0.0, time.time() - float(said["updated"]))
        done, total = int(said["done"]), int(said["total"])
        left = None if said.get("seconds_left") is None else _finite(said["seconds_left"])
        return TaskProgress(
            task=str(said.get("task") or ""),
            done=done,
            total=total,
            unit=str(said.get("unit") or ""),
            rows_per_second=_finite(said.get("rows_per_second")),
            seconds_left=None if left is None else max(0.0, left - age),
            unit_seconds=(left or 0.0) / max(total - done, 1),
            age_seconds=age,
            job_id=str(said.get("job_id") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or of another version
        return None


def _finite(value: Any) -> float:
    number = float(value or 0)
    return number if math.isfinite(number) else 0.0
