"""A throw-away Slurm for tests: ``cluster.sh`` starts it, ``scontrol`` says how its jobs are."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("cluster.sh")
UNAVAILABLE = 77
"""Exit code of ``cluster.sh`` where there can be no cluster."""

UNFINISHED = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED"}
LOGIN_VARIABLES = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""All that a job gets of this process's environment: settings of a developer, or of a job that we are in, stay out."""

Done = subprocess.CompletedProcess[str]


class Unavailable(Exception):
    """There can be no cluster here; the message says why and what would help."""


def login_environment() -> dict[str, str]:
    """What a user has who has just logged in."""
    return {name: os.environ[name] for name in LOGIN_VARIABLES if name in os.environ} | {"HF_HUB_OFFLINE": "1"}


def eventually(holds: Callable[[], bool], seconds: float, what: str, shown: Callable[[], str] = lambda: "") -> None:
    """Wait until ``holds``; the test fails after ``seconds``, with ``what`` was awaited and what ``shown`` gives."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{shown()}")
        time.sleep(0.25)


@dataclass(frozen=True)
class Job:
    """What ``scontrol show job`` says of a job or of one task of an array."""

    shown: Mapping[str, str]

    @property
    def state(self) -> str:
        """``RUNNING``, ``COMPLETED``, …"""
        return self.shown["JobState"]

    @property
    def task(self) -> int | None:
        """Its number in the array; none for a whole job, and for tasks that still wait together."""
        number = self.shown.get("ArrayTaskId", "")
        return int(number) if number.isdecimal() else None

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.shown["Restarts"])

    @property
    def node(self) -> str:
        """Where it runs or ran."""
        return self.shown.get("NodeList", "")

    @property
    def job_id(self) -> str:
        """Of the job, or of the array that it is a task of."""
        return self.shown.get("ArrayJobId") or self.shown["JobId"]

    @property
    def own_id(self) -> str:
        """As ``scancel`` and ``scontrol requeue`` take it."""
        return f"{self.shown['ArrayJobId']}_{self.task}" if self.task is not None else self.shown["JobId"]


@dataclass
class Cluster:
    """Two nodes, n1 and n2."""

    directory: Path
    knobs: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What leads Slurm's commands here."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def do(self, verb: str, *arguments: object) -> str:
        """``cluster.sh VERB``; what it printed.

        Raises:
            Unavailable: there can be no cluster here.
            AssertionError: it failed.
        """
        command = ["bash", str(SCRIPT), verb, str(self.directory), *map(str, arguments)]
        environment = login_environment() | {f"CLUSTER_{name.upper()}": value for name, value in self.knobs.items()}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if done.returncode == UNAVAILABLE:
            raise Unavailable(done.stderr.strip())
        assert done.returncode == 0, f"cluster.sh {verb}: {done.stdout}{done.stderr}"
        return done.stdout

    def command(self, *words: object, check: bool = True) -> str:
        """One of Slurm's commands; what it printed."""
        done = subprocess.run(
            list(map(str, words)),
            capture_output=True,
            text=True,
            env=login_environment() | self.environment,
            timeout=60,
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, *job_ids: str) -> list[Job]:
        """The jobs of these ids, task by task for arrays; without ids all that there ever were."""
        texts = [self.command("scontrol", "--oneliner", "show", "job", *ids) for ids in ([i] for i in job_ids)]
        if not job_ids:
            texts = [self.command("scontrol", "--oneliner", "show", "job")]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("JobId=")]
        return [Job(dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", line))) for line in lines]

    def states(self, *job_ids: str) -> list[str]:
        """Of every job or task."""
        return [job.state for job in self.jobs(*job_ids)]

    def task(self, job_id: str, task: int) -> Job:
        """One task of an array; while it waits together with others, all of them."""
        jobs = self.jobs(job_id)
        found = [job for job in jobs if job.task == task] or [job for job in jobs if job.task is None]
        assert len(found) == 1, f"{job_id}_{task}: {found}"
        return found[0]

    def idle(self, *job_ids: str) -> bool:
        """Whether none of these jobs (default: no job at all) runs or waits."""
        return not UNFINISHED & set(self.states(*job_ids))

    def wait(self, *job_ids: str, seconds: float = 600) -> None:
        """Until none of these jobs (default: no job at all) runs or waits."""
        eventually(lambda: self.idle(*job_ids), seconds, f"the end of {job_ids or 'all jobs'}", self.shown)

    def shown(self) -> str:
        """The queue and all that is ended, for messages."""
        rows = [
            f"{job.own_id} {job.shown['JobName']} {job.state} {job.shown['Reason']} exit {job.shown['ExitCode']} "
            f"restarts {job.restarts} {job.node} {job.shown.get('StdOut', '')}"
            for job in self.jobs()
        ]
        return "\n".join(rows)

    def clear(self) -> None:
        """End all jobs, for the next test."""
        self.command("scancel", "--user=root", check=False)
        self.wait(seconds=60)


def processes_of(cluster: Cluster) -> list[int]:
    """Numbers of all running processes that belong to it: daemons, jobs and what they started."""
    marker = f"SLURM_CONF={cluster.directory / 'slurm.conf'}".encode()
    return [pid for pid, environment in _environments() if marker in environment.split(b"\0")]


def _environments() -> Iterable[tuple[int, bytes]]:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            yield int(place.name), (place / "environ").read_bytes()
        except OSError:
            continue
