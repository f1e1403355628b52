"""Where a file is when no setting names it."""

from __future__ import annotations

from pathlib import Path

from arena_distill.runtime.errors import InputError

DEFAULT_DIRECTORIES = (Path("data"), Path("data/lmsys-chatbot-arena"))


def find_file(given: str, name: str, flag: str) -> Path:
    """The file a setting names, or the first existing one of the default layout (.csv, .parquet or .jsonl).

    Raises:
        InputError: nothing was given and nothing is there.
    """
    if given:
        return Path(given)
    for directory in DEFAULT_DIRECTORIES:
        for suffix in (".csv", ".parquet", ".jsonl"):
            if (path := directory / f"{name}{suffix}").exists():
                return path
    places = " or ".join(str(directory / f"{name}.csv") for directory in DEFAULT_DIRECTORIES)
    raise InputError(f"no {name} file: {places} does not exist -> put it there or give {flag}")
