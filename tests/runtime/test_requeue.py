"""What becomes of a stopped Slurm job: by what Slurm was seen to say of it, and how often it came without progress.

``scontrol`` is a stand-in here, which says what the real one said; tests/slurm has the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arena_distill.runtime import requeue as module
from arena_distill.runtime.errors import ArenaError
from arena_distill.runtime.requeue import Fate, RefusedError, Requeues, read_job, read_saved, requeue
from tests.conftest import REPOSITORY

JOB = "12_3"

# Slurm 22.05, `scontrol -o show job`, when the signal or SIGTERM had reached the job's script.
LINE = (
    "JobId=57 ArrayJobId=12 ArrayTaskId=3 JobName=teachers UserId=root(0) GroupId=root(0) MCS_label=N/A "
    "Priority=4294901707 Nice=0 Account=(null) QOS=(null) {state} Requeue=1 {restarts} BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 RunTime=00:00:01 TimeLimit=00:05:00 TimeMin=N/A SubmitTime=2026-11-22T22:37:03 {preempt}"
    "SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-22T22:37:03 Scheduler=Main Partition=main "
    "NodeList=n1 BatchHost=n1 Command=/a/step3.sh --x JobState=CANCELLED StdOut=/a/logs/teachers_12_3.out Power= \n"
)
ELIGIBLE = "PreemptEligibleTime=2026-11-22T22:37:03 "


def line(state: str, reason: str = "None", restarts: int = 0, preempt: str = f"{ELIGIBLE}PreemptTime=None ") -> str:
    return LINE.format(
        state=f"JobState={state} Reason={reason} Dependency=(null)", restarts=f"Restarts={restarts}", preempt=preempt
    )


WARNED = line("RUNNING")
TIME_LIMIT = line("COMPLETING", reason="TimeLimit")
PREEMPTED = line("COMPLETING", preempt=f"{ELIGIBLE}PreemptTime=2026-11-22T22:37:09 ")
CANCELLED = line("COMPLETING")
REQUEUED = line("COMPLETING", restarts=1, preempt="")
NODE_DOWN = line("PENDING", restarts=1, preempt="")

SEEN = {
    "warned before the time limit": (WARNED, Fate.REQUEUE),
    "at the time limit": (TIME_LIMIT, Fate.REQUEUE),
    "preempted, to be cancelled": (PREEMPTED, Fate.REQUEUE),
    "preempted, to be requeued": (REQUEUED, Fate.ALREADY),
    "requeued by scontrol": (REQUEUED, Fate.ALREADY),
    "node set down": (NODE_DOWN, Fate.ALREADY),
    "cancelled": (CANCELLED, Fate.ENDED),
    "cancelled and gone": (line("CANCELLED"), Fate.ENDED),
    "warned, suspended": (line("SUSPENDED"), Fate.REQUEUE),
    "as other versions may have it": (line("PREEMPTED,COMPLETING"), Fate.REQUEUE),
}


@pytest.mark.parametrize(("text", "fate"), SEEN.values(), ids=SEEN)
def test_a_job_is_requeued_unless_it_is_already_or_its_user_ended_it(text: str, fate: Fate) -> None:
    assert read_job(text).fate(0) is fate


def test_earlier_restarts_say_nothing() -> None:
    assert read_job(line("RUNNING", restarts=2)).fate(2) is Fate.REQUEUE
    assert read_job(line("COMPLETING", restarts=2)).fate(2) is Fate.ENDED
    assert read_job(line("COMPLETING", restarts=3)).fate(2) is Fate.ALREADY


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id specified", "No jobs in the system"])
def test_what_is_no_job_is_an_error(text: str) -> None:
    with pytest.raises(ArenaError, match="scontrol show job says"):
        read_job(text)


# Asking Slurm


class Scontrol:
    """A command of that name that answers from files, and notes how it was called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = directory / "scontrol"
        command.write_text(
            f"#!{sys.executable}\n"
            "import sys, time\n"
            "from pathlib import Path\n"
            f"here = Path({str(directory)!r})\n"
            "with (here / 'calls').open('a') as calls: calls.write(' '.join(sys.argv[1:]) + '\\n')\n"
            "if (here / 'slow').exists():\n"
            "    (here / 'asked').touch()\n"
            "    while (here / 'slow').exists(): time.sleep(0.02)\n"
            "failures = here / 'failures'\n"
            "left = failures.read_text().splitlines() if failures.exists() else []\n"
            "if left:\n"
            "    failures.write_text('\\n'.join(left[1:]))\n"
            "    sys.exit(left[0])\n"
            "if 'show' in sys.argv: print((here / 'line').read_text())\n",
            "utf-8",
        )
        command.chmod(0o755)

    def says(self, text: str) -> None:
        (self.directory / "line").write_text(text, "utf-8")

    def fails(self, *messages: str) -> None:
        """At its next calls."""
        (self.directory / "failures").write_text("\n".join(messages), "utf-8")

    @property
    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    @property
    def requeues(self) -> list[str]:
        return [call for call in self.calls if call.startswith("requeue")]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    return Scontrol(directory)


def allow() -> None:
    """Whatever it is."""


def test_a_task_of_an_array_is_named_so_that_the_others_stay_as_they_are(scontrol: Scontrol) -> None:
    scontrol.says(WARNED)
    assert requeue(JOB, 0, allow) is Fate.REQUEUE
    assert scontrol.calls == [f"-o show job {JOB}", f"requeue {JOB}"]


@pytest.mark.parametrize("text", [CANCELLED, REQUEUED, NODE_DOWN])
def test_nothing_is_done_to_a_job_that_is_not_to_be_requeued(scontrol: Scontrol, text: str) -> None:
    scontrol.says(text)
    requeue(JOB, 0, lambda: pytest.fail("it was asked whether it may be requeued"))
    assert not scontrol.requeues


def test_a_controller_that_is_being_restarted_is_asked_again(scontrol: Scontrol) -> None:
    scontrol.says(WARNED)
    scontrol.fails("Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv operation")
    assert requeue(JOB, 0, allow) is Fate.REQUEUE
    assert scontrol.requeues == [f"requeue {JOB}"]


def test_a_job_that_is_cancelled_while_the_controller_is_away_stays_cancelled(scontrol: Scontrol) -> None:
    scontrol.says(CANCELLED)
    scontrol.fails("Unable to contact slurm controller (connect failure)")
    assert requeue(JOB, 0, allow) is Fate.ENDED
    assert not scontrol.requeues


def test_a_controller_that_does_not_come_back_is_given_up_in_its_own_words(scontrol: Scontrol) -> None:
    scontrol.fails(*["Unable to contact slurm controller (connect failure)"] * 99)
    with pytest.raises(ArenaError, match="Unable to contact slurm controller"):
        requeue(JOB, 0, allow, patience=0.1)


def test_a_refusal_is_not_asked_for_twice(scontrol: Scontrol) -> None:
    scontrol.says(WARNED)
    scontrol.fails("Requested operation is presently disabled for job 12")
    with pytest.raises(RefusedError, match="presently disabled"):
        requeue(JOB, 0, allow)
    assert len(scontrol.calls) == 1


# Progress


def test_more_saved_is_progress_and_less_is_not() -> None:
    state = Requeues(0, {}).after({"a": 5})
    assert state.in_a_row == 0
    for saved, in_a_row in ((5, 1), (3, 2), (5, 3)):
        state = Requeues(state.in_a_row + 1, state.saved).after({"a": saved})
        assert state.in_a_row == in_a_row, "what is done over again is no progress"
    assert Requeues(3, state.saved).after({"a": 6}).in_a_row == 0


def test_the_first_run_must_have_saved_something() -> None:
    assert Requeues(1, {}).after({}).in_a_row == 1
    assert Requeues(1, {}).after({"a": 0}).in_a_row == 1


def test_the_next_task_of_a_job_is_progress_once() -> None:
    state = Requeues(2, {"training": 40}).after({"scoring": 0})
    assert state.in_a_row == 0
    state = Requeues(1, state.saved).after({"scoring": 0})
    assert state.in_a_row == 1


def test_only_heartbeats_of_this_job_count(tmp_path: Path) -> None:
    def beat(name: str, **said: Any) -> None:
        (tmp_path / name).write_text(json.dumps({"task": "train", "saved": 4} | said), "utf-8")

    beat("of_the_array.json", job_id="12", array_task="3")
    beat("by_its_own_number.json", job_id="57", array_task="3")
    beat("of_another_task.json", job_id="12", array_task="2")
    beat("of_another_job.json", job_id="11", array_task="3")
    beat("without_slurm.json", job_id="", array_task="")
    beat(".hidden.json", job_id="57", array_task="3")
    (tmp_path / "broken.json").write_text('{"task":', "utf-8")
    (tmp_path / "list.json").write_text("[1]", "utf-8")
    own = {"SLURM_JOB_ID": "57", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert read_saved(tmp_path, own) == {"by_its_own_number.json: train": 4, "of_the_array.json: train": 4}
    assert read_saved(tmp_path / "nowhere", own) == {}


# The command that a job calls


class Job:
    """A job that runs, is stopped, and calls the command."""

    def __init__(self, progress: Path) -> None:
        self.progress = progress
        self.variables = {"SLURM_JOB_ID": "57", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}

    def saves(self, count: int) -> None:
        self.progress.mkdir(exist_ok=True)
        beat = {"task": "train", "saved": count, "job_id": "12", "array_task": "3"}
        (self.progress / "step3_train_teachers_fold_3.json").write_text(json.dumps(beat), "utf-8")

    def start(self, most: str = "3") -> subprocess.Popen[str]:
        flags = ["--job", JOB, "--most", most, "--progress", str(self.progress)]
        return subprocess.Popen(
            [sys.executable, "-m", "arena_distill.runtime.requeue", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **self.variables},
        )

    def stopped(self, most: str = "3") -> tuple[int, str]:
        process = self.start(most)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "progress")


def test_a_job_without_progress_is_requeued_so_often_and_then_fails(scontrol: Scontrol, job: Job) -> None:
    scontrol.says(WARNED)
    for time_in_a_row in (1, 2, 3):
        code, printed = job.stopped()
        assert code == 0
        assert (f"{time_in_a_row} of at most 3 times in a row" in printed) == (time_in_a_row > 1)
    code, printed = job.stopped()
    assert code == 1
    assert "MAX_REQUEUES=3" in printed and "SBATCH_TIMELIMIT" in printed
    assert len(scontrol.requeues) == 3


def test_a_job_with_progress_is_requeued_as_often_as_it_takes(scontrol: Scontrol, job: Job) -> None:
    scontrol.says(WARNED)
    for count in range(1, 7):
        job.saves(count)
        assert job.stopped("1")[0] == 0
    assert len(scontrol.requeues) == 6
    assert job.stopped("1")[0] == 1, "this time nothing was saved"


def test_requeues_that_slurm_makes_are_not_counted(scontrol: Scontrol, job: Job) -> None:
    scontrol.says(REQUEUED)
    for _ in range(3):
        code, printed = job.stopped("1")
        assert code == 0 and "is requeued" in printed
    scontrol.says(WARNED)
    assert job.stopped("1")[0] == 0


def test_a_cancelled_job_is_told_so(scontrol: Scontrol, job: Job) -> None:
    scontrol.says(CANCELLED)
    code, printed = job.stopped()
    assert code == 1
    assert "was cancelled, and is not requeued" in printed and not job.progress.exists()


def test_without_requeues_a_job_says_how_it_goes_on(scontrol: Scontrol, job: Job) -> None:
    scontrol.says(WARNED)
    code, printed = job.stopped("0")
    assert code == 1
    assert "submit it again: it goes on from what is saved" in printed and not scontrol.requeues


def test_a_number_of_requeues_that_is_none_is_named(scontrol: Scontrol, job: Job) -> None:
    code, printed = job.stopped("often")
    assert code == 1
    assert "MAX_REQUEUES=often is no number" in printed


def test_the_signal_that_requeueing_sends_to_the_job_does_not_end_what_requeues_it(
    scontrol: Scontrol, job: Job
) -> None:
    scontrol.says(WARNED)
    (scontrol.directory / "slow").touch()
    process = job.start()
    deadline = time.monotonic() + 60
    while not (scontrol.directory / "asked").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    (scontrol.directory / "slow").unlink()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert scontrol.requeues == [f"requeue {JOB}"]


def test_nothing_heavy_is_imported_when_seconds_count() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "arena_distill.runtime.requeue", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    imported = {text.rpartition("|")[2].strip().partition(".")[0] for text in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "numpy", "pyarrow", "pydantic", "pydantic_settings"}
