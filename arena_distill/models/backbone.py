"""Which model a name means: a directory, or an entry of the hub. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import InputError

SMALL_FILE = 1 << 26  # bytes; hashed whole
SAMPLED_PIECES, PIECE_BYTES = 64, 1 << 16


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


def local_directory(name: str) -> Path:
    """The directory of a model's files; those of a hub name are downloaded, or found in the cache.

    Raises:
        InputError: the hub does not have it, or cannot be reached and the cache does not have it either.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: not on this machine, and not to be had from the hub ({reason})") from error


def model_identity(name: str) -> str:
    """What tells one model from another, cheap even for 140 GB: other weights, other identity.

    A hub name stands for itself. Of a directory count ``config.json`` and the weights files: small ones whole, of
    large ones the size, the header (names, shapes and places of all tensors) and 64 pieces, which any training changes.
    """
    directory = Path(name)
    if not directory.is_dir():
        return name
    whole = hashlib.sha256()
    for file in sorted(p for p in directory.iterdir() if p.is_file()):
        if file.suffix in (".safetensors", ".bin") or file.name == "config.json":
            whole.update(f"{file.name}\0{file.stat().st_size}\0{_sampled_sha256(file)}\n".encode())
    return whole.hexdigest()


def is_same_model(recorded: str, identity: str) -> bool | None:
    """Whether two identities are of one model; None for a hub name beside a directory, which cannot be compared."""
    if not recorded or _is_digest(recorded) != _is_digest(identity):
        return None
    return recorded == identity


def _is_digest(identity: str) -> bool:
    return len(identity) == 64 and set(identity) <= set("0123456789abcdef")


def _sampled_sha256(file: Path) -> str:
    size = file.stat().st_size
    if size <= SMALL_FILE:
        return sha256_file(file)
    sample = hashlib.sha256()
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        sample.update(stream.read(min(header, SMALL_FILE)))
        for place in range(SAMPLED_PIECES):
            stream.seek(place * (size - PIECE_BYTES) // (SAMPLED_PIECES - 1))
            sample.update(stream.read(PIECE_BYTES))
    return sample.hexdigest()
