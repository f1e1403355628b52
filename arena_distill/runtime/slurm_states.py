"""What ``scontrol`` and ``sacct`` print of jobs, read into one state a task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

ACTIVE: frozenset[str] = frozenset(
    {
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "RESV_DEL_HOLD"),
    }
)
"""States of a job that runs, or may run without anybody submitting it again."""

SACCT_FIELDS = ("JobID", "State", "ElapsedRaw", "ExitCode", "NodeList")

_NO_VALUE = {"", "(null)", "None", "None assigned", "Unknown", "N/A"}
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=")
_NO_TASK = "4294967294"  # what %a is in the log path of tasks that have not started yet
_MOST_TASKS = 1 << 22  # Slurm's own bound of MaxArraySize


@dataclass(frozen=True)
class TaskState:
    """One job, or one task of an array, as Slurm knows it."""

    job_id: str  # of the array where there is one
    task: int | None  # of the array; None for a job that is none
    state: str  # PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, OUT_OF_MEMORY ...
    reason: str  # why it waits or ended, in Slurm's words; empty where Slurm gives none
    elapsed_seconds: int | None  # since its last start
    exit_code: str  # exit code and signal, "3:0"; empty where unknown
    restarts: int  # how often it was requeued; 0 where only sacct knows the job
    node: str
    log: str  # path of its output; empty where unknown
    dependency: str = ""  # what it waits or waited for, such as afterok:12_*(failed)

    @property
    def active(self) -> bool:
        """Whether it runs, or may run without anybody submitting it again."""
        return self.state in ACTIVE


def read_scontrol(text: str) -> list[TaskState]:
    """What ``scontrol -o show job`` prints: a line a job or task; tasks that wait may share one."""
    return [state for line in text.splitlines() if line.strip() for state in _of_line(line)]


def _of_line(line: str) -> Iterator[TaskState]:
    fields = _fields(line)
    if "JobId" not in fields or "JobState" not in fields:
        return
    started = fields.get("StartTime", "") not in _NO_VALUE  # cancelled before it started: RunTime counts from 1970
    state = TaskState(
        job_id=fields.get("ArrayJobId") or fields["JobId"],
        task=None,
        state=fields["JobState"].split(",")[0].split(" ")[0],
        reason=_value(fields, "Reason"),
        elapsed_seconds=_seconds(fields.get("RunTime", "")) if started else None,
        exit_code=_value(fields, "ExitCode"),
        restarts=int(fields["Restarts"]) if fields.get("Restarts", "").isdecimal() else 0,
        node=_value(fields, "NodeList"),
        log=_value(fields, "StdOut"),
        dependency=_value(fields, "Dependency"),
    )
    if "ArrayTaskId" not in fields:
        yield state
    for task in task_numbers(fields.get("ArrayTaskId", "")):
        yield replace(state, task=task, log=state.log.replace(_NO_TASK, str(task)))


def _fields(line: str) -> dict[str, str]:
    """``Key=Value`` pairs; a value may hold spaces, and of a key that stands twice the first counts."""
    keys = list(_FIELD.finditer(line))
    ends = [key.start() for key in keys[1:]] + [len(line)]
    fields: dict[str, str] = {}
    for key, end in zip(keys, ends, strict=True):
        fields.setdefault(key[1], line[key.end() : end].strip())
    return fields


def _value(fields: dict[str, str], name: str) -> str:
    value = fields.get(name, "")
    return "" if value in _NO_VALUE else value


def read_sacct(text: str) -> list[TaskState]:
    """What ``sacct -P -n -X`` prints with ``SACCT_FIELDS``; lines of steps or of another form are passed over."""
    return [state for line in text.splitlines() for state in _of_record(line.split("|"))]


def _of_record(values: list[str]) -> Iterator[TaskState]:
    if len(values) != len(SACCT_FIELDS):
        return
    job, state, elapsed, exit_code, node = (value.strip() for value in values)
    match = re.fullmatch(r"(\d+)(?:_(?:(\d+)|\[([^]]*)\]))?", job)
    if match is None or not state:
        return
    word, _, by = state.partition(" ")  # CANCELLED by 1000
    record = TaskState(
        job_id=match[1],
        task=None,
        state=word.rstrip("+"),
        reason=f"{by.replace('by ', 'by user ')}" if by else "",
        elapsed_seconds=int(elapsed) if elapsed.isdecimal() and word != "PENDING" else None,
        exit_code=exit_code if re.fullmatch(r"\d+:\d+", exit_code) else "",
        restarts=0,
        node="" if node in _NO_VALUE else node,
        log="",
    )
    if match[2] is None and match[3] is None:
        yield record
    for task in task_numbers(match[2] or match[3] or ""):
        yield replace(record, task=task)


def task_numbers(text: str) -> list[int]:
    """The tasks that Slurm writes as ``3``, ``1-4%2``, ``0,2,5-7`` or ``0-8:4``; what is none of these names none."""
    numbers: list[int] = []
    for part in text.split("%")[0].split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::(\d+))?)?\s*", part)
        if match:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if step > 0 and last - first < _MOST_TASKS:
                numbers.extend(range(first, last + 1, step))
    return numbers


def _seconds(text: str) -> int | None:
    """Slurm's ``[days-]hours:minutes:seconds``."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
