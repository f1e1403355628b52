"""What the log of a task says of its end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 1 << 17
# What scripts/stage.sh says at the beginning and at the end.
_BEGIN = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+: on \S+, .*\bcores\b")
_END = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+: (?:done in \d+ s|stopped .*\bexit code (\d+) after)")
_OF_SLURM = re.compile(r"^(?:slurmstepd|srun|slurmd)[^:]*: error: (.*)")


@dataclass(frozen=True)
class LogEnd:
    """How the last attempt in a log ended."""

    exit_code: int | None  # None: it says of no end, so it runs or was killed
    words: str  # its last error; empty where it names none


def read_end(log: Path) -> LogEnd | None:
    """The end of a log, or None where there is no log.

    An attempt that was requeued appends to the log: what counts is what stands after the end of the one before.
    """
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return None
    lines = [line.rpartition("\r")[2].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    ends = [number for number, line in enumerate(lines) if _END.search(line)]
    ended = bool(ends) and not any(_BEGIN.search(line) for line in lines[ends[-1] + 1 :])
    before = ends[:-1] if ended else ends
    attempt = lines[before[-1] + 1 :] if before else lines
    match = _END.search(lines[ends[-1]]) if ended else None
    code = int(match[1] or 0) if match else None
    return LogEnd(code, "" if code == 0 else _error(attempt))


def _error(lines: list[str]) -> str:
    """The last error of an attempt: ours, else Slurm's, else the last line of a traceback."""
    ours = [line for line in lines if line.startswith("error: ")]
    if ours:
        return ours[-1].removeprefix("error: ")
    slurm = [match[1].strip("* ") for line in lines if (match := _OF_SLURM.match(line))]
    if slurm:
        return slurm[-1]
    raised = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt)\b", line)]
    return raised[-1] if raised else ""
