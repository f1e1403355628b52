"""Which model a name means: a directory, or an entry of the hub. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from arena_distill.runtime.errors import InputError


def check_backbone(name: str, setting: str) -> str:
    """``name`` if it can be a model: a directory with a ``config.json``, or a hub name.

    A path that does not exist is never taken for a hub name.

    Raises:
        InputError: it is a directory without a model, a file, or a path to nothing.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"{setting}={name}: the directory holds no model (no config.json) -> name a model directory"
            )
        return str(path)
    first = path.parts[0] if path.parts else ""
    looks_like_path = name.startswith((".", "/", "~", "\\")) or len(path.parts) > 2 or path.is_absolute()
    if path.exists() or looks_like_path or (len(path.parts) == 2 and Path(first).is_dir()):
        raise InputError(
            f"{setting}={name}: no such model directory -> check the path, or give a hub name like org/name"
        )
    return name
