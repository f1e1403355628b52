"""The one door to Slurm: submit, ask for the state of jobs, cancel. Nothing else in Python calls its commands.

A controller that is being restarted is waited for, a minute or two. A submission whose answer got lost is looked for
in the queue before it is made again: it may have arrived, and one job must not become two.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from arena_distill.runtime.errors import ArenaError, SettingsError
from arena_distill.runtime.slurm_refusals import advice
from arena_distill.runtime.slurm_states import ACTIVE, SACCT_FIELDS, TaskState, read_sacct, read_scontrol

__all__ = [
    "ACTIVE",
    "SlurmUnreachable",
    "SubmissionError",
    "TaskState",
    "available",
    "cancel",
    "submit",
    "task_states",
    "test_only",
]

PATIENCE_SECONDS = 120.0
"""How long a controller that does not answer is waited for."""

_PING_SECONDS, _QUERY_SECONDS = 5.0, 30.0
_SUBMIT_SECONDS = 180.0  # sbatch itself waits two minutes for a place in a full queue
_PAUSE_SECONDS = 3.0

_NO_CONTACT = re.compile(
    r"unable to contact slurm controller|socket timed out|communication connection failure|zero bytes were transmitted|"
    r"message (send|receive) failure|connection (timed out|reset|refused|aborted)|broken pipe|missing socket|"
    r"no route to host|unreachable|standby mode|rate limit exceeded",
    re.IGNORECASE,
)
_NEVER_ARRIVED = re.compile(r"\(connect failure\)|connection refused|standby mode|rate limit exceeded", re.IGNORECASE)
_OF_A_JOB = re.compile(r"SLURM_(?!CONF$|CLUSTERS$|JWT$|TIME_FORMAT$)")
_FORMATS = ("SLURM_TIME_FORMAT", "SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SACCT_FORMAT", "SQUEUE_STATES", "SQUEUE_USERS")


class SubmissionError(SettingsError):
    """Slurm did not take a job: its own words, and the setting to change."""


class SlurmUnreachable(ArenaError):
    """Slurm's commands are not there, or no controller answers them, so nothing is known of any job."""


def available() -> bool:
    """Whether there is a Slurm to submit to: ``sbatch`` is on the path, and a controller answers within seconds."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    try:
        return _run(["scontrol", "ping"], timeout=_PING_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def submit(
    options: Sequence[str],
    script: Path,
    *,
    environment: Mapping[str, str],
    cwd: Path,
    patience_seconds: float = PATIENCE_SECONDS,
) -> str:
    """Submit a job, once.

    Args:
        options: of sbatch.
        script: what to run.
        environment: of sbatch and of the job, whole: nothing is added, and of this process nothing is taken.
            What Slurm has set for a job that this runs in is left out, lest the new job takes it for its own.
        cwd: the job's working directory.
        patience_seconds: how long to wait for a controller that does not answer.

    Returns:
        The job's id (of an array the array's).

    Raises:
        SubmissionError: Slurm did not take it; or nobody can say whether it did.
    """
    # A comment that no other job has: by it a submission is found whose answer got lost.
    token = "" if any(option.startswith("--comment") for option in options) else f"arena-distill {uuid.uuid4().hex}"
    words = ["--parsable", *([f"--comment={token}"] if token else []), *options, str(script)]
    clean = _without_job(environment)
    deadline = time.monotonic() + patience_seconds
    lost = False  # an answer got lost, so that a job may be there
    while True:
        returncode, said = _sbatch(words, clean, cwd)
        if returncode == 0:
            job_id = said.strip().splitlines()[-1].split(";")[0] if said.strip() else ""
            if not job_id.isdecimal():
                raise SubmissionError(f"sbatch {script}: {said!r} is no job id -> look with squeue, then try again")
            if lost:
                _cancel_twins(token, job_id, clean)
            return job_id
        if not _NO_CONTACT.search(said):
            raise _refusal(script, said, clean)
        if not _NEVER_ARRIVED.search(said):
            lost = True
        if lost and (known := _arrived(token, clean, deadline, script)):
            return known
        if time.monotonic() >= deadline:
            raise _refusal(script, said, clean)
        time.sleep(_PAUSE_SECONDS)


def test_only(
    options: Sequence[str],
    script: Path,
    *,
    environment: Mapping[str, str],
    cwd: Path,
    patience_seconds: float = PATIENCE_SECONDS,
) -> str:
    """What ``sbatch --test-only`` says of a job that would be submitted so: when and where it would start.

    Without accounting, and where the cluster does not enforce limits, Slurm takes jobs that will never run.

    Raises:
        SubmissionError: Slurm would not take it.
    """
    clean = _without_job(environment)
    deadline = time.monotonic() + patience_seconds
    while True:
        returncode, said = _sbatch(["--test-only", *options, str(script)], clean, cwd)
        if returncode == 0:
            return _own_words(said)
        if not _NO_CONTACT.search(said) or time.monotonic() >= deadline:
            raise _refusal(script, said, clean)
        time.sleep(_PAUSE_SECONDS)


def task_states(
    job_ids: Iterable[str], *, patience_seconds: float = PATIENCE_SECONDS
) -> dict[tuple[str, int | None], TaskState]:
    """The state of every task of these jobs, by job id and task (None where the job is no array).

    The queue is asked first. ``sacct``, where it answers, is asked for what the queue has forgotten: it says less
    (neither log nor restarts).

    Args:
        job_ids: as ``submit`` returned them.
        patience_seconds: how long to wait for a controller that does not answer.

    Raises:
        SlurmUnreachable: there is no Slurm here, or no controller answers. That a job is left out of the result
            means that Slurm knows nothing of it any more, and so that it does not run.
    """
    ids = list(dict.fromkeys(job_ids))
    if not ids:
        return {}
    queue: list[TaskState] = []
    unsure: list[str] = []  # forgotten, or an array of which some tasks may be
    deadline = time.monotonic() + patience_seconds
    for job_id in ids:
        states = read_scontrol(_ask(["scontrol", "-o", "show", "job", job_id], deadline))
        queue += states
        if not states or any(state.task is not None for state in states):
            unsure.append(job_id)
    remembered = _ask_sacct(unsure)
    return {(state.job_id, state.task): state for state in (*remembered, *queue)}


def cancel(job_ids: Iterable[str], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Cancel these jobs; those that have ended, or that Slurm has forgotten, stay as they are.

    Raises:
        SlurmUnreachable: no controller answers, or Slurm refuses.
    """
    ids = list(dict.fromkeys(job_ids))
    if ids:
        _ask(["scancel", *ids], time.monotonic() + patience_seconds)


def _without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what Slurm set for the job that we run in: its SLURM_ARRAY_TASK_ID would be taken for the new job's."""
    if not environment.get("SLURM_JOB_ID"):
        return dict(environment)
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def _sbatch(words: Sequence[str], environment: Mapping[str, str], cwd: Path) -> tuple[int, str]:
    """Exit code, and the output of a success or the complaint of a failure."""
    try:
        done = _run(["sbatch", *words], timeout=_SUBMIT_SECONDS, environment=environment, cwd=cwd)
    except subprocess.TimeoutExpired:
        return 1, "Socket timed out: sbatch itself did not end"
    except FileNotFoundError as error:
        if not cwd.is_dir():
            raise SubmissionError(f"{cwd}: no such directory -> submit from the repository") from error
        raise SubmissionError(
            "sbatch: not on the path -> go to a login node of a cluster (or load its Slurm module), or run without "
            "--slurm"
        ) from error
    except OSError as error:
        raise SubmissionError(f"sbatch: cannot be called ({error.strerror}) -> a smaller environment") from error
    if done.returncode == 0 and done.stdout:
        print(done.stderr, end="", file=sys.stderr)  # what a site tells those who submit
    return done.returncode, done.stdout if done.returncode == 0 and done.stdout else done.stderr


def _refusal(script: Path, said: str, environment: Mapping[str, str]) -> SubmissionError:
    words = _own_words(said) or "refused without a word"
    return SubmissionError(f"sbatch {script.name}: {words} -> {advice(words, environment)}")


def _own_words(said: str) -> str:
    """What sbatch said, as one line without its name."""
    lines = (re.sub(r"^sbatch: (error: |fatal: )?", "", line).strip() for line in said.splitlines())
    return "; ".join(line for line in lines if line and not line.startswith('Try "sbatch --help"'))


def _arrived(token: str, environment: Mapping[str, str], deadline: float, script: Path) -> str | None:
    """The id of the job whose submission was not answered, or None if it surely is not there.

    Raises:
        SubmissionError: nobody can say.
    """
    unknown = SubmissionError(
        f"sbatch {script.name}: Slurm did not answer, and the job may be submitted all the same -> look with squeue "
        "before you give the command again"
    )
    if not token:
        raise unknown
    for _ in range(2):  # a controller that was busy may answer us before it takes the job
        time.sleep(_PAUSE_SECONDS)
        try:
            jobs = _with_comment(token, environment, deadline)
        except SlurmUnreachable as error:
            raise unknown from error
        if jobs:
            return jobs[0]
    return None


def _with_comment(token: str, environment: Mapping[str, str], deadline: float) -> list[str]:
    """Ids of the jobs with this comment, the oldest first."""
    table = _ask(["squeue", "--noheader", "--states=all", "--format=%F|%k"], deadline, environment)
    rows = (line.partition("|") for line in table.splitlines())
    return sorted({job_id for job_id, _, comment in rows if comment.strip() == token}, key=int)


def _cancel_twins(token: str, job_id: str, environment: Mapping[str, str]) -> None:
    """Cancel what a lost submission made after all."""
    deadline = time.monotonic() + _QUERY_SECONDS
    try:
        if twins := [other for other in _with_comment(token, environment, deadline) if other != job_id]:
            _ask(["scancel", *twins], deadline, environment)
    except SlurmUnreachable as error:
        print(f"note: cannot tell whether job {job_id} is there twice ({error})", file=sys.stderr)


def _ask(command: Sequence[str], deadline: float, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; empty for jobs that are not known. Asked again until the deadline while none answers.

    Raises:
        SlurmUnreachable: the command is not there, no controller answers, or it refuses.
    """
    while True:
        try:
            done = _run(command, timeout=_QUERY_SECONDS, environment=environment)
        except subprocess.TimeoutExpired:
            said = "no answer"
        except OSError as error:
            raise SlurmUnreachable(f"{command[0]}: {error.strerror} -> this machine has no Slurm") from error
        else:
            said = " ".join(done.stderr.split())
            if done.returncode == 0 or re.search(r"invalid job id|already complet", said, re.IGNORECASE):
                return done.stdout
            if not _NO_CONTACT.search(said):
                raise SlurmUnreachable(
                    f"{command[0]}: {said or f'exit code {done.returncode}'} -> mend what it says; by hand: "
                    f"{' '.join(command)}"
                )
        if time.monotonic() >= deadline:
            raise SlurmUnreachable(f"{command[0]}: {said} -> wait until scontrol ping says UP, and ask again")
        time.sleep(_PAUSE_SECONDS)


def _ask_sacct(job_ids: Sequence[str]) -> list[TaskState]:
    """What accounting remembers; nothing where there is none."""
    if not job_ids:
        return []
    fields = ",".join(SACCT_FIELDS)
    command = ["sacct", "-P", "-n", "-X", f"--format={fields}", "-j", ",".join(job_ids)]
    try:
        done = _run(command, timeout=_QUERY_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return read_sacct(done.stdout) if done.returncode == 0 else []


def _run(
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """In plain words, and with whole lists of tasks, whatever the user likes to see otherwise."""
    whole = dict(os.environ if environment is None else environment)
    if command[0] != "sbatch":  # whose environment is that of the job
        whole = {name: value for name, value in whole.items() if name not in _FORMATS}
        whole |= {"SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
    return subprocess.run(
        list(command),
        env=whole,
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
