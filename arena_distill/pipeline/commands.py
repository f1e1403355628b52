"""The verbs of ``./pipeline.sh``: which function each calls. Imports only what the one that is called needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

VERBS = ("status", "cancel", "resume", "preflight")


def run(argv: Sequence[str], description: str) -> int:
    """Do what a command line says.

    Args:
        argv: without the program's name; a verb and the run that it concerns may come first.
        description: first lines of ``--help``.

    Returns:
        The exit code.

    Raises:
        ArenaError: it cannot be done, or was and failed.
    """
    words = list(argv)
    verb = words.pop(0) if words and words[0] in VERBS else ""
    if verb and words and not words[0].startswith("-"):
        os.environ["RUN"] = words.pop(0)
    if verb in ("status", "preflight") or "--dry-run" in words:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who says `| head` has seen enough
    if verb == "preflight":
        from arena_distill.pipeline.preflight import preflight

        return preflight(words, description)
    from arena_distill.pipeline.command_line import parse

    settings = parse(words, description)
    if verb == "status":
        from arena_distill.pipeline.status import show_status

        return show_status(settings)
    if verb == "cancel":
        from arena_distill.pipeline.cancel import cancel

        return cancel(settings)
    if verb == "resume":
        from arena_distill.pipeline.resume import resume

        return resume(settings, words)
    if settings.pipeline_dry_run:
        from arena_distill.pipeline.dry_run import dry_run

        return dry_run(settings)
    from arena_distill.pipeline.start import start

    return start(settings)
