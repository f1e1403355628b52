"""The contract between stages: outputs appear whole, say what made them, and are made by one job at a time.

A file is written under a temporary name and renamed. A directory is built in a hidden ``.NAME.partial`` beside its
final place, receives ``manifest.json`` and is renamed when complete; the old one goes only then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arena_distill.runtime import heartbeat
from arena_distill.runtime.errors import ArenaError, InputError
from arena_distill.runtime.interruption import checkpointing

if TYPE_CHECKING:
    from filelock import FileLock

MANIFEST = "manifest.json"
MANIFEST_SCHEMA_VERSION = 1
RESTARTED_WAIT_SECONDS = 180.0  # for the lock of a job's former self, which may be dying on another node still
_REPORTED_PACKAGES = (
    "arena-distill",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "accelerate",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "scipy",
)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new one, whole, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say whose file it was
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable(path: Path) -> None:
    """Refuse before the work, not after it, if ``path`` could not be written.

    Raises:
        InputError: its directory cannot be made or written to, or the path is a directory.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror}) -> choose another place") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written there -> choose another place, or mend the permissions")


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists: where its disk can be asked."""
    return next(place for place in (path, *path.resolve().parents) if place.exists())


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """Hash of a file, or of a directory's files by name and content (hidden files and the manifest left out)."""
    if path.is_file():
        return sha256_file(path)
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        relative = file.relative_to(path)
        if file.name != MANIFEST and not any(part.startswith(".") for part in relative.parts):
            whole.update(f"{relative.as_posix()}\0{sha256_file(file)}\n".encode())
    return whole.hexdigest()


def fingerprint(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of what determines an output: settings that matter and the hashes of its inputs."""
    document = json.dumps({"settings": settings, "inputs": inputs}, sort_keys=True, default=str)
    return hashlib.sha256(document.encode()).hexdigest()


def write_manifest(
    directory: Path,
    *,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    started: float,
    details: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> dict[str, Any]:
    """Write ``manifest.json`` for a finished output.

    Args:
        directory: the output; its files are hashed (a directory's one by one).
        stage: which stage or mode made it.
        settings: the resolved settings that determine it.
        inputs: input name -> hash.
        started: ``time.time()`` at the start, for the wall time.
        details: row counts, metrics and what else belongs to this stage.
        path: where to write, for an output that is a single file; by default inside ``directory``.
    """
    manifest = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "stage": stage,
        "fingerprint": fingerprint(settings, inputs),
        "settings": dict(settings),
        "inputs": dict(inputs),
        "outputs": _output_hashes(directory),
        "output_bytes": {file.name: file.stat().st_size for file in _output_files(directory)},
        "git_revision": git_revision(),
        "slurm_job": _slurm_job(),
        "versions": {name: _version(name) for name in _REPORTED_PACKAGES},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": round(time.time() - started, 2),
        **(details or {}),
    }
    write_atomically(path or directory / MANIFEST, json.dumps(manifest, indent=2, default=str) + "\n")
    return manifest


def _output_hashes(output: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in _output_files(output)}


def _output_files(output: Path) -> list[Path]:
    if output.is_file():
        return [output]
    return [p for p in sorted(output.iterdir()) if p.is_file() and p.name != MANIFEST and not p.name.startswith(".")]


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished output directory, or None where there is none.

    Raises:
        InputError: there is one, but it is broken or of a newer schema.
    """
    return read_manifest_file(directory / MANIFEST)


def read_manifest_file(path: Path) -> dict[str, Any] | None:
    """The manifest at ``path``, as ``read_manifest``; for an output that is a single file."""
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version, *_ = (manifest[key] for key in ("schema_version", "stage", "fingerprint", "outputs"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a whole manifest of ours ({error!r}) -> make the directory again") from error
    if version != MANIFEST_SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, expected {MANIFEST_SCHEMA_VERSION} -> make it again")
    return dict(manifest)


def is_up_to_date(directory: Path, expected_fingerprint: str) -> bool:
    """Whether ``directory`` is complete, was made with these settings and inputs, and still has all its files."""
    manifest = read_manifest(directory)
    if manifest is None or manifest["fingerprint"] != expected_fingerprint:
        return False
    sizes = manifest.get("output_bytes", {})
    files = {name: directory / name for name in manifest["outputs"]}
    return all(file.is_file() and file.stat().st_size == sizes.get(name) for name, file in files.items())


def was_restarted() -> bool:
    """Whether Slurm has started this job before: it was requeued."""
    return os.environ.get("SLURM_RESTART_COUNT", "") not in ("", "0")


def made_before_restart(directory: Path) -> bool:
    """Whether this very job made ``directory``, before it was requeued: what it was told to do again, it has done."""
    job = _slurm_job()
    return was_restarted() and job is not None and (read_manifest(directory) or {}).get("slurm_job") == job


def _slurm_job() -> str | None:
    """Of an array's tasks each has its own; a requeue does not change it."""
    return os.environ.get("SLURM_JOB_ID")


def require_recorded(directory: Path, suffix: str) -> None:
    """Refuse files that are not, to the byte, those that the manifest of ``directory`` records; without one, none.

    Args:
        directory: a finished output.
        suffix: of the files to hash, such as ``.safetensors``.

    Raises:
        InputError: a file is missing, or was changed or damaged since.
    """
    manifest = read_manifest(directory)
    for name, recorded in ({} if manifest is None else manifest["outputs"]).items():
        if name.endswith(suffix) and (not (directory / name).is_file() or sha256_file(directory / name) != recorded):
            raise InputError(
                f"{directory / name}: changed or damaged since it was written -> copy it again, or make it again with "
                "FORCE=1 (STUDENT_OVERWRITE=1 in step 5)"
            )


def require_replaceable(directory: Path, stage: str) -> None:
    """Refuse to put an output of ``stage`` in the place of anything but an earlier output of the same stage.

    Raises:
        InputError: there is a file, or a directory that holds something else.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    ours = False
    if directory.is_dir():
        with suppress(InputError):
            ours = (read_manifest(directory) or {}).get("stage") == stage
    if directory.exists() and not ours:
        raise InputError(
            f"{directory}: holds something that {stage} did not make -> choose another place for the output"
        )


def partial_directory(final: Path, tag: str = "") -> Path:
    """Where the next version of ``final`` is built; it survives a crash, so that work can resume in it.

    ``tag`` keeps apart what runs with different settings leave behind.
    """
    final = _real(final)
    return final.parent / f".{final.name}.partial{'-' if tag else ''}{tag}"


def _real(final: Path) -> Path:
    """Where the output itself is: a user may have put a link to a larger disk in its place."""
    return final.resolve() if final.is_symlink() else final


def publish(partial: Path, final: Path) -> None:
    """Put the finished ``partial`` in the place of ``final`` by renaming; what stood there goes last."""
    for file in partial.rglob("*"):  # safetensors makes its files readable by the owner alone
        if file.is_file():
            file.chmod(0o666 & ~_umask())
    final = _real(final)
    old = final.parent / f".{final.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    with checkpointing():  # both renames or none
        if final.exists():
            final.rename(old)
        try:
            partial.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
        heartbeat.keep(1)
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Undo a ``publish`` that was killed between its two renames."""
    final = _real(final)
    old = final.parent / f".{final.name}.replaced"
    if old.is_dir() and not final.exists():
        old.rename(final)


@contextmanager
def locked(output: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of ``output`` so that no second job writes it; the lock goes with the process.

    Args:
        output: file or directory that will be written.
        wait_seconds: how long to wait for another job that holds it; at least ``RESTARTED_WAIT_SECONDS`` in a job that
            Slurm has started again.

    Raises:
        ArenaError: another process holds it.
    """
    from filelock import FileLock, Timeout

    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.parent / f".{output.name}.lock")
    try:
        _acquire(lock, output, wait_seconds)
    except Timeout as error:
        raise ArenaError(f"{output}: another job is writing it -> wait for that job, or choose another RUN") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, output: Path, wait_seconds: float) -> None:
    from filelock import Timeout

    former_self = ""
    if was_restarted():
        wait_seconds = max(wait_seconds, RESTARTED_WAIT_SECONDS)
        former_self = ", perhaps this job's former self, which is ending"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait_seconds:
            raise
        print(
            f"{output}: another process is writing it{former_self} -> waiting for it, up to {wait_seconds:.0f} s",
            flush=True,
        )
        lock.acquire(timeout=wait_seconds)


def git_revision() -> str | None:
    """Revision of this checkout, with ``+dirty`` if it has uncommitted changes; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    command: Iterable[str] = ("git", "-C", str(root), *words)
    return subprocess.run(list(command), capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
