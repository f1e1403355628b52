"""Stopping on a signal so that nothing is lost: SIGUSR1 comes before a time limit, SIGTERM with a preemption.

Work that can be gone on with (training, scoring) is inside ``checkpointing``: there a signal only leaves a wish, which
the loop fulfils once what it has done is saved. Everywhere else the signal raises at once, which is safe because
outputs appear whole or not at all. Without ``listen`` nothing is installed, and all of this does nothing.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

STOP_FILE = "STOP_FILE"
"""Environment variable: a file whose appearance means what a signal means. torchrun passes none on to its ranks."""

POLL_SECONDS = 1.0
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The job is to stop. What catches Ctrl-C to tidy up catches this too; ``run_command`` makes it exit code 75."""


class _Listener:
    """What a process has been told, and what it is doing about it."""

    def __init__(self, process: int = 0) -> None:
        self.process = process  # that listens; 0: none
        self.wanted = self.raised = False
        self.depth = 0  # of checkpointing()
        self.child: subprocess.Popen[Any] | None = None  # that is waited for, and told too
        self.closed = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            _in_forked_child(number)
        elif not self.closed.is_set():
            self.wanted = True
            self.tell_child()
            if not self.depth and not self.raised:  # once: a second signal must not disturb tidying up after the first
                self.interrupt()

    def tell_child(self) -> None:
        if self.wanted and self.child is not None:
            self.child.send_signal(signal.SIGUSR1)

    def interrupt(self) -> NoReturn:
        self.raised = True
        raise Interrupted

    def watch(self, file: Path) -> None:
        while not file.exists():
            if self.closed.wait(POLL_SECONDS):
                return
        os.kill(self.process, signal.SIGUSR1)


_listener = _Listener()


def _in_forked_child(number: int) -> None:
    """A process that inherited the handler, a data loader's say: whoever started it says when it is to end."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def obey_parent_only() -> None:
    """In a process that a library started to help this one: be ended by its parent, and by no signal that is for all.

    Slurm sends SIGTERM to every process of a job; a data loader's would be gone before its parent's next step.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def listen() -> None:
    """Heed SIGUSR1, SIGTERM and the file that ``$STOP_FILE`` names from now on. Works in the main thread only."""
    global _listener
    if _listener.process == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _listener = _Listener(os.getpid())
    for number in _SIGNALS:
        signal.signal(number, _listener.handle)
    if name := os.environ.get(STOP_FILE):
        threading.Thread(target=_listener.watch, args=(Path(name),), daemon=True, name=STOP_FILE).start()


@contextmanager
def listening() -> Iterator[None]:
    """``listen`` while the context lasts, the process's whole work. Within another such context it does nothing.

    Afterwards a signal is ignored: taking down large libraries takes a while, and the exit code is to stand.
    """
    global _listener
    before = _listener
    try:
        listen()
        yield
    finally:
        mine = _listener
        if mine is not before:
            mine.closed.set()
            atexit.register(_ignore_signals)  # Python takes down its own handlers, and then the libraries
            _listener = _Listener()


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def requested() -> bool:
    """Whether this process has been told to stop."""
    return _listener.wanted


def stop_if_requested() -> None:
    """Go no further if told to stop: for places where everything done so far is saved.

    Raises:
        Interrupted: told so.
    """
    if _listener.wanted:
        interrupt()


def interrupt() -> NoReturn:
    """Stop, whoever was told to: one process of several may speak for all.

    Raises:
        Interrupted: always.
    """
    _listener.interrupt()


@contextmanager
def checkpointing() -> Iterator[None]:
    """Within the context a signal does not raise: the work asks ``requested``, or calls ``stop_if_requested``.

    Raises:
        Interrupted: at the end of the outermost such context, if a signal has come that the work did not heed.
    """
    _listener.depth += 1
    try:
        yield
    finally:
        _listener.depth -= 1
    if not _listener.depth:
        stop_if_requested()


def run_worker(command: Sequence[str], **options: Any) -> int:
    """Run a worker of ours as a child; it is told of a signal, and waited for while it saves.

    Args:
        command: program and arguments.
        options: of ``subprocess.Popen``.

    Returns:
        Its exit code.

    Raises:
        Interrupted: a signal has come, or the child stopped on one of its own.
    """
    from arena_distill.runtime.errors import EXIT_REQUEUE

    with checkpointing(), subprocess.Popen(list(command), **options) as child:
        try:
            _listener.child = child
            _listener.tell_child()  # of what came while it was started
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            _listener.child = None
    if code == EXIT_REQUEUE:
        interrupt()
    return code
