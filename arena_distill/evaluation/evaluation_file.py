"""``evaluation.json``: written whole, with the hashes of all that it was computed from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.runtime.artifacts import read_manifest_file, sha256_file, write_atomically, write_manifest
from arena_distill.runtime.errors import InputError

SCHEMA_VERSION = 1
STAGE = "step9_evaluate"


def name_of(path: Path, output_dir: Path) -> str:
    """How the file names another: relative to the output directory, or in full where it is not inside."""
    absolute, root = path.resolve(), output_dir.resolve()
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def write_evaluation(
    path: Path,
    document: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    started: float,
) -> None:
    """Write the file, and then its manifest beside it.

    Args:
        path: the JSON file.
        document: what it holds; no NaN.
        settings: what determines it.
        inputs: input name -> hash.
        started: ``time.time()`` at the start.
    """
    write_atomically(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    write_manifest(path, path=manifest_path(path), stage=STAGE, settings=settings, inputs=inputs, started=started)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What ``write_evaluation`` wrote; None where there is nothing.

    Raises:
        InputError: it is broken, or of another schema.
    """
    if not path.is_file():
        return None
    try:
        document = dict(json.loads(path.read_text("utf-8")))
        version = document["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no evaluation of ours ({error!r}) -> run step 9 again") from error
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, expected {SCHEMA_VERSION} -> run step 9 again")
    return document


def finished_evaluation(path: Path, expected_fingerprint: str) -> dict[str, Any] | None:
    """The evaluation at ``path``, if it was made with these settings and inputs and nobody has touched it since."""
    try:
        manifest = read_manifest_file(manifest_path(path))
        if manifest is None or manifest["fingerprint"] != expected_fingerprint or not path.is_file():
            return None
        return read_evaluation(path) if manifest["outputs"].get(path.name) == sha256_file(path) else None
    except InputError:  # it is in nobody's way: it is written again
        return None


def changed_files(document: Mapping[str, Any], output_dir: Path) -> list[str]:
    """Names of the files that are gone, or other than those that the evaluation is of."""
    files = ((name, output_dir / name, digest) for name, digest in document["files"].items())
    return [name for name, path, digest in files if not path.is_file() or sha256_file(path) != digest]
