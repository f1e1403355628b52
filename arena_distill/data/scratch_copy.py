"""Copies of finished outputs on scratch disks, which fill up and fail more often than others."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from arena_distill.runtime.artifacts import partial_directory, publish, sha256_file
from arena_distill.runtime.errors import InputError

ATTEMPTS = 3
PAUSE_SECONDS = 2.0  # most failures on shared scratch disks pass within seconds


def copy_to_scratch(files: Mapping[str, tuple[Path, str]], destination: Path) -> None:
    """Copy files into a directory that appears whole, after comparing what arrived with what was sent.

    To be called under the lock of ``destination``, which is replaced.

    Args:
        files: name in ``destination`` -> file and its sha256.
        destination: the directory to make.

    Raises:
        InputError: too little room, or a file that does not arrive in several attempts. Nothing is left behind then.
    """
    partial = partial_directory(destination)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        require_room(partial, sum(path.stat().st_size for path, _ in files.values()))
        for name, (path, sha256) in files.items():
            _copy(path, partial / name, sha256)
        publish(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_room(partial: Path, size: int) -> None:
    """Refuse to begin what would not fit: ``size`` bytes in the existing directory ``partial``.

    Raises:
        InputError: less is free.
    """
    free = shutil.disk_usage(partial).free
    if free < size:
        raise InputError(
            f"{partial.parent}: {size / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free "
            "-> make room, or choose another place"
        )


def _copy(source: Path, target: Path, sha256: str) -> None:
    problem = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            shutil.copyfile(source, target)
            with target.open("rb") as stream:
                os.fsync(stream.fileno())  # disks over a network report a failed write only now
            if sha256_file(target) == sha256:
                return
            problem = "the copy is not like the original"
        except OSError as error:
            problem = error.strerror or str(error)
        if attempt < ATTEMPTS:
            print(f"note: {target.name} did not arrive ({problem}), attempt {attempt} of {ATTEMPTS}")
            time.sleep(PAUSE_SECONDS)
    raise InputError(
        f"{target.parent.parent}: {target.name} cannot be copied there ({problem}, {ATTEMPTS} attempts) "
        f"-> mend or empty that disk and run again; only the copy is still to be made"
    )
