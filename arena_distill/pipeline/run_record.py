"""What a run remembers of its own orchestration: submitted jobs, local tasks, the lock, the settings it began with.

Everything is in ``model_save/[RUN/]pipeline/``. Files of JSON lines are appended to, a line at a time, by whoever holds
the lock; readers need no lock.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import ArenaError, InputError

DIRECTORY = "pipeline"
JOBS_FILE, LOCAL_FILE, SETTINGS_FILE, PROFILE_COPY = "jobs.jsonl", "local.jsonl", "run.json", "profile.env"
LOCK_FILE, HOLDER_FILE = "lock", "holder.json"
Entry = TypeVar("Entry", "SubmittedJob", "LocalTask")


@dataclass(frozen=True)
class SubmittedJob:
    """One sbatch that Slurm took."""

    submitted: str  # ISO time
    stage: str
    job_id: str
    tasks: list[int] | None  # of the array; None: a job that is none
    array: str | None  # what a task takes: "fold" or "shard"
    depends: list[str]  # as given to --dependency: afterok:12, aftercorr:13
    command: list[str]
    log: str  # pattern, as sbatch has it: logs/%x_%A_%a.out

    @property
    def keys(self) -> list[tuple[str, int | None]]:
        """Its tasks as ``slurm.task_states`` names them."""
        return [(self.job_id, task) for task in self.tasks] if self.tasks is not None else [(self.job_id, None)]


@dataclass(frozen=True)
class LocalTask:
    """One stage script that ran, or runs, on this machine."""

    stage: str
    task: int | None  # fold or shard
    array: str | None
    started: str  # ISO time
    ended: str | None  # None: still running, or killed with its orchestrator
    pid: int
    node: str
    exit_code: int | None
    log: str

    @property
    def is_running(self) -> bool:
        """Whether its process is alive; False for one of another machine, which nobody here can tell."""
        return self.ended is None and self.node == socket.gethostname() and _alive(self.pid)


@dataclass(frozen=True)
class RunSettingsRecord:
    """What a run is to do and was told, as its first command said and later ones added."""

    run: str
    began: str  # ISO time of the latest command
    slurm: bool  # of the latest command
    stages: list[str]
    folds: list[int]
    variables: dict[str, str]  # settings of the environment and the command line; never secrets
    profile: str  # PROFILE as given
    profile_sha256: str  # of its file
    profile_entries: dict[str, str]
    threads: dict[str, int]  # of a task, by stage
    git_revision: str | None
    seed: int


class RunRecord:
    """The record of one run.

    Args:
        model_save: the run's ``model_save/[RUN]``.
    """

    def __init__(self, model_save: Path) -> None:
        self.model_save = model_save
        self.directory = model_save / DIRECTORY

    @property
    def progress_directory(self) -> Path:
        """Where workers leave their heartbeats."""
        return self.directory / "progress"

    def jobs(self) -> list[SubmittedJob]:
        """Everything ever submitted for this run, oldest first."""
        return _entries(self.directory / JOBS_FILE, SubmittedJob)

    def add(self, job: SubmittedJob) -> None:
        """Note a submitted job, before anything else can fail."""
        _append(self.directory / JOBS_FILE, asdict(job))

    def local_tasks(self) -> list[LocalTask]:
        """Every task that ever ran on this machine, in the order of starting; one that ended is there once."""
        latest: dict[tuple[str, int | None, str, int], LocalTask] = {}
        for task in _entries(self.directory / LOCAL_FILE, LocalTask):
            latest[task.stage, task.task, task.started, task.pid] = task
        return list(latest.values())

    def add_local(self, task: LocalTask) -> None:
        """Note the start of a local task, and again its end."""
        _append(self.directory / LOCAL_FILE, asdict(task))

    def settings(self) -> RunSettingsRecord | None:
        """What the run was told; None if nothing was ever started."""
        path = self.directory / SETTINGS_FILE
        if not path.is_file():
            return None
        try:
            return RunSettingsRecord(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: not a whole record ({error}) -> remove this file, then start the run again with the settings "
                "that it had (./pipeline.sh …): what is complete is kept"
            ) from error

    def write_settings(self, settings: RunSettingsRecord) -> None:
        """Replace what the run was told."""
        write_atomically(self.directory / SETTINGS_FILE, json.dumps(asdict(settings), indent=1) + "\n")

    def holder(self) -> dict[str, Any] | None:
        """Who holds the lock, as far as it has said: what, pid, node, since."""
        try:
            return dict(json.loads((self.directory / HOLDER_FILE).read_text("utf-8")))
        except (OSError, ValueError):
            return None

    @contextmanager
    def locked(self, what: str = "is being submitted") -> Iterator[None]:
        """Be the only one that submits, resumes, or runs this run here; the lock goes with the process.

        Args:
            what: said to whoever comes meanwhile: "run x {what}".

        Raises:
            ArenaError: somebody else holds it; says who.
        """
        from filelock import FileLock, Timeout

        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / LOCK_FILE)
        try:
            lock.acquire(timeout=0.5)  # is_locked() of a reader holds it for a moment
        except Timeout as error:
            raise ArenaError(self._busy()) from error
        holder = self.directory / HOLDER_FILE
        try:
            mine = {"what": what, "pid": os.getpid(), "node": socket.gethostname(), "since": now()}
            write_atomically(holder, json.dumps(mine) + "\n")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def is_locked(self) -> bool:
        """Whether somebody holds the lock now; creates nothing."""
        from filelock import FileLock, Timeout

        path = self.directory / LOCK_FILE
        if not path.is_file():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _busy(self) -> str:
        held = self.holder() or {}
        what = held.get("what", "is being started or submitted")
        who = f" (process {held['pid']} on {held['node']}, since {held['since']})" if held else ""
        name = self.name
        return (
            f"run {name or 'without a name'} {what} already{who} -> `./pipeline.sh status {name}` shows it, "
            f"`./pipeline.sh cancel {name}` ends it; or choose another RUN"
        )

    @property
    def name(self) -> str:
        """RUN; empty for the run without a name."""
        return "" if self.model_save.name == "model_save" else self.model_save.name


def now() -> str:
    """ISO time with the zone, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.is_file() and not path.read_bytes().endswith(b"\n")  # by a full disk or a kill
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut_off + json.dumps(entry) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _entries(path: Path, kind: type[Entry]) -> list[Entry]:
    """What the whole lines of a file say; the last may be one that is being written, or was cut off by a full disk.

    Raises:
        InputError: a line is whole, and says something else.
    """
    entries = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines() if path.is_file() else (), 1):
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        try:
            entries.append(kind(**fields))
        except TypeError as error:
            raise InputError(f"{path}, line {number}: is none of ours ({error}) -> remove this line") from error
    return entries


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
