"""One stage script running here: started with its log, followed line by line, ended so that nothing is left."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LEAVE_SECONDS = 330.0
"""How long a script may take to checkpoint when it is asked to end; it gives its worker a little less (GRACE)."""

_PR_SET_PDEATHSIG = 1


class LocalProcess:
    """A child in a session of its own, whose output goes to a file: it outlives no one, and loses no line.

    Args:
        command: what to run.
        cwd: where.
        environment: all of it.
        log: receives the output; appended to.
    """

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started = time.monotonic()
        self._read = log.stat().st_size if log.exists() else 0
        self._rest = b""
        self._kill_at: float | None = None
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for us to pass on, once
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # we have no threads
            )

    @property
    def pid(self) -> int:
        """Of the script; also of its process group."""
        return self._child.pid

    @property
    def node(self) -> str:
        """This machine."""
        return socket.gethostname()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def exit_code(self) -> int | None:
        """As a shell has it (128 + signal), or None while it runs. Whatever it left running is killed."""
        code = self._child.poll()
        if code is None:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self.kill()
            return None
        self.kill()
        return code if code >= 0 else 128 - code

    def ask_to_end(self) -> None:
        """Let it checkpoint and go; it is killed if it does not."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + LEAVE_SECONDS
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End all of its process group at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def follow(self, show: Callable[[str], None], *, to_the_end: bool = False) -> None:
        """Pass on the whole lines that the log has grown by; at the end also one that was not finished."""
        with self.log.open("rb") as stream:
            stream.seek(self._read)
            grown = stream.read()
        self._read += len(grown)
        *lines, self._rest = (self._rest + grown).split(b"\n")
        if to_the_end and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            show(line.decode("utf-8", "replace").rpartition("\r")[2])


def _end_with_parent() -> None:
    """In the child: be asked to end if the orchestrator is killed, so that no stage goes on unwatched."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
