"""Signals to real processes: work that can be gone on with is saved first, all else stops at once; the code is 75."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arena_distill.runtime.errors import EXIT_REQUEUE, run_command
from arena_distill.runtime.interruption import STOP_FILE, checkpointing, listen, requested, stop_if_requested
from tests.conftest import REPOSITORY

PROLOGUE = """
import os, signal, subprocess, sys, time
from arena_distill.runtime.errors import run_command
from arena_distill.runtime.interruption import (
    checkpointing, interrupt, listen, obey_parent_only, requested, run_worker, stop_if_requested
)
def say(text): os.write(1, f"{text}\\n".encode())  # in one piece
"""
EPILOGUE = "\nsys.exit(run_command(main))"
LINE = "stopped on a signal; what is finished is kept, and the same command goes on from there\n"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])


@contextmanager
def worker(main: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process with this ``main``, which says that it has begun."""
    with subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + main + EPILOGUE],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
    ) as process:
        try:
            assert process.stdout is not None
            # Not readline: it would take what comes next along, and ``communicate`` reads past its buffer.
            assert b"".join(os.read(process.stdout.fileno(), 1) for _ in "begun\n") == b"begun\n"
            yield process
        finally:
            process.kill()


def ending(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, and the rest of both outputs."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@SIGNALS
def test_a_signal_waits_until_the_settings_are_read(number: int) -> None:
    """Raised inside pydantic, it could pass for a value that does not match its pattern: exit code 2."""
    main = """
from typing import Annotated
from pydantic import AfterValidator
from arena_distill.runtime.settings import StageSettings, parse_settings
def validate(value):
    say("begun")
    os.kill(os.getpid(), int(os.environ["NUMBER"]))
    say("validated")
    return value
class Settings(StageSettings):
    value: Annotated[int, AfterValidator(validate)]
def main():
    parse_settings(Settings, ["--value", "1"], program="x", description="")
    say("went on")
"""
    with worker(main, NUMBER=str(int(number))) as process:
        assert ending(process) == (EXIT_REQUEUE, "validated\n", LINE)


@SIGNALS
def test_a_signal_stops_at_once_and_tidies_up(number: int) -> None:
    main = """
def main():
    try:
        say("begun")
        time.sleep(60)
    except KeyboardInterrupt:
        say("interrupted")
        raise
    finally:
        say("tidied up")
"""
    with worker(main) as process:
        process.send_signal(number)
        assert ending(process) == (EXIT_REQUEUE, "interrupted\ntidied up\n", LINE)


@SIGNALS
def test_work_that_is_checkpointing_comes_to_a_place_where_it_can_stop(number: int) -> None:
    main = """
def main():
    with checkpointing():
        for batch in range(1000):
            stop_if_requested()
            say("begun" if not batch else batch)
            deadline = time.monotonic() + (60 if not batch else 0)
            while not requested() and time.monotonic() < deadline:
                time.sleep(0.01)
            say("saved")
    say("not reached")
"""
    with worker(main) as process:
        process.send_signal(number)
        assert ending(process) == (EXIT_REQUEUE, "saved\n", LINE)


def test_a_signal_that_the_work_did_not_heed_stops_it_at_the_end_of_the_outermost_context() -> None:
    main = """
def main():
    with checkpointing():
        with checkpointing():
            say("begun")
            while not requested():
                time.sleep(0.01)
        say("within")
    say("not reached")
"""
    with worker(main) as process:
        process.send_signal(signal.SIGUSR1)
        assert ending(process) == (EXIT_REQUEUE, "within\n", LINE)


def test_more_signals_do_not_disturb_the_tidying_up() -> None:
    main = """
def main():
    try:
        say("begun")
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        say("tidied up")
import atexit
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), say("at exit")))
"""
    with worker(main) as process:
        process.send_signal(signal.SIGUSR1)
        assert ending(process) == (EXIT_REQUEUE, "tidied up\nat exit\n", LINE)


def test_a_signal_while_the_libraries_of_a_finished_process_are_taken_down_does_not_make_it_a_failure() -> None:
    main = """
class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.write(1, b"taken down\\n")
library = Library()
def main():
    say("begun")
"""
    with worker(main) as process:
        assert ending(process) == (0, "taken down\n", "")


def test_an_error_while_it_stops_is_still_an_error() -> None:
    main = """
from arena_distill.runtime.errors import InputError
def main():
    with checkpointing():
        say("begun")
        while not requested():
            time.sleep(0.01)
        raise InputError("the disk is full")
"""
    with worker(main) as process:
        process.send_signal(signal.SIGTERM)
        assert ending(process) == (3, "", "error: the disk is full\n")


def test_a_file_stops_it_too_also_one_that_is_there_already(tmp_path: Path) -> None:
    main = "\ndef main():\n    say('begun')\n    time.sleep(60)\n"
    stop = tmp_path / "stop"
    with worker(main, STOP_FILE=str(stop)) as process:
        stop.touch()
        assert ending(process) == (EXIT_REQUEUE, "", LINE)
    command = [sys.executable, "-c", PROLOGUE + main + EPILOGUE]
    environment = {**os.environ, STOP_FILE: str(stop)}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (EXIT_REQUEUE, LINE)


def test_of_several_processes_one_speaks_and_one_left_alone_is_no_error() -> None:
    main = """
def main():
    with checkpointing():
        say("begun")
        while not requested():
            time.sleep(0.01)
        raise RuntimeError("Connection closed by peer")
"""
    with worker(main, RANK="1", WORLD_SIZE="2") as process:
        process.send_signal(signal.SIGUSR1)
        assert ending(process) == (EXIT_REQUEUE, "", "")
    with worker(main, RANK="0", WORLD_SIZE="1") as process:
        process.send_signal(signal.SIGUSR1)
        code, _, err = ending(process)
        assert code == 1 and "Connection closed by peer" in err


@pytest.mark.parametrize(("number", "says"), [(signal.SIGUSR1, "child ends\n"), (signal.SIGTERM, "")])
def test_a_forked_child_heeds_no_wish_and_can_still_be_ended(number: int, says: str) -> None:
    main = f"""
def main():
    child = os.fork()
    if not child:
        say("begun")
        time.sleep(0.5)
        say("child ends")
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, {int(number)})
    _, status = os.waitpid(child, 0)
    say(status)
    assert not requested()
"""
    with worker(main) as process:
        code, out, err = ending(process)
    assert (code, err) == (0, "")
    assert out == f"{says}{0 if says else int(number)}\n"


def test_a_helping_process_is_ended_by_its_parent_alone() -> None:
    main = """
def main():
    child = os.fork()
    if not child:
        obey_parent_only()
        say(os.getpid())
        time.sleep(60)
        os._exit(1)
    assert sys.stdin.readline()
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it lives on"
    os.kill(child, signal.SIGTERM)
    say(os.waitpid(child, 0)[1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + main + EPILOGUE],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None and process.stdout is not None
    os.kill(int(process.stdout.readline()), signal.SIGTERM)
    time.sleep(0.2)
    assert process.communicate("go on\n", timeout=60)[0] == "0\n"
    assert process.returncode == 0


CHILD = "say('begun')\n    while not requested(): time.sleep(0.01)\n    time.sleep(0.3)\n    say('child saved')"


def test_a_worker_that_is_waited_for_is_told_and_saves_before_both_end() -> None:
    child = f"{PROLOGUE}\ndef main():\n  with checkpointing():\n    {CHILD}{EPILOGUE}"
    main = f"""
def main():
    run_worker([sys.executable, "-c", {child!r}])
    say("not reached")
"""
    with worker(main) as process:
        process.send_signal(signal.SIGTERM)
        assert ending(process) == (EXIT_REQUEUE, "child saved\n", LINE * 2)


@pytest.mark.parametrize("code", [0, 3, EXIT_REQUEUE])
def test_the_code_of_a_worker_is_given_back_and_75_is_passed_on(code: int) -> None:
    main = f"""
def main():
    say("begun")
    say(run_worker([sys.executable, "-c", "import sys; sys.exit({code})"]))
"""
    with worker(main) as process:
        stopped = code == EXIT_REQUEUE
        assert ending(process) == ((EXIT_REQUEUE, "", LINE) if stopped else (0, f"{code}\n", ""))


# In this process


def test_a_wish_goes_with_the_command_and_a_signal_after_it_is_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def main() -> None:
        mine = signal.getsignal(signal.SIGTERM)
        assert mine != before
        with checkpointing():
            assert run_command(lambda: 0) == 0, "a command within a command"
            assert signal.getsignal(signal.SIGTERM) == mine
            os.kill(os.getpid(), signal.SIGUSR1)
            assert requested()

    for _ in range(2):
        assert run_command(main) == EXIT_REQUEUE
        assert not requested()
        stop_if_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not requested()


def test_without_a_listener_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv(STOP_FILE, str(tmp_path))  # it exists
    with checkpointing():
        stop_if_requested()
    assert not requested() and signal.getsignal(signal.SIGUSR1) == before


def test_another_thread_than_the_main_one_runs_commands_without_listening() -> None:
    codes = []

    def command() -> None:
        codes.append(run_command(lambda: 4))
        listen()

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert codes == [4]
