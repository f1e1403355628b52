"""The errors a user can cause, each with the exit code that a script or scheduler sees.

Exit codes: 0 done, 2 bad settings, 3 bad or missing input, 75 checkpointed and to be requeued, 1 anything else.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from os import PathLike

from arena_distill.runtime import heartbeat
from arena_distill.runtime.interruption import Interrupted, listening, requested

SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""They live in the user's environment alone: no file and no log of ours ever holds their values."""

EXIT_BAD_SETTINGS = 2
EXIT_BAD_INPUT = 3
EXIT_REQUEUE = 75


class ArenaError(Exception):
    """Base of all errors that are the user's to mend; the message says what is wrong and what to do next."""

    exit_code = 1


class SettingsError(ArenaError):
    """A flag, environment variable or profile entry is unknown, malformed or out of bounds."""

    exit_code = EXIT_BAD_SETTINGS


class InputError(ArenaError):
    """An input file or directory is missing, damaged or not what the stage expects."""

    exit_code = EXIT_BAD_INPUT


class DataError(InputError):
    """A data file cannot be used. Names file, data row (from 1, header not counted) and column where known."""

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str],
        row: int | None = None,
        column: str | None = None,
        hint: str = "",
    ) -> None:
        self.problem, self.file, self.row, self.column, self.hint = problem, str(file), row, column, hint
        where = str(file)
        if row is not None:
            where += f", row {row}"
        if column is not None:
            where += f", column {column!r}"
        super().__init__(f"{where}: {problem}" + (f" -> {hint}" if hint else ""))


def without_secrets(text: str) -> str:
    """``text`` with the values of secret environment variables blotted out: libraries quote requests in errors."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return text


def run_command(main: Callable[[], int | None]) -> int:
    """Run a worker's ``main``; print a user's error as one clear line and return the exit code.

    SIGUSR1 and SIGTERM stop it as ``interruption`` says.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in a job log, lines and progress must stand in order
    try:
        with listening():
            return _exit_code(main)
    except Interrupted:
        return _stopped()
    finally:
        heartbeat.flush()


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except ArenaError as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "arena_distill":
            raise
        advice = "set up with `make setup`, then `source .venv/bin/activate`"
        print(f"error: the Python package {error.name} is missing -> {advice}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(
            f"error: {error.filename}: {error.strerror} -> mend the path, its permissions or the disk", file=sys.stderr
        )
        return EXIT_BAD_INPUT
    except Interrupted:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        if requested() and int(os.environ.get("WORLD_SIZE") or 1) > 1:
            return _stopped()  # another process went first, and left this one alone in what they did together
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        return 1


def _stopped() -> int:
    if os.environ.get("RANK") in (None, "", "0"):
        print("stopped on a signal; what is finished is kept, and the same command goes on from there", file=sys.stderr)
    return EXIT_REQUEUE
