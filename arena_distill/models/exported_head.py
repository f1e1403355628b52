"""A student's head in a file of its own: read, checked, written, and compared with that of a model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from arena_distill.data.records import CLASSES
from arena_distill.models.classifier import HEAD_MODULES
from arena_distill.models.head_file import HEAD_SAFETENSORS, head_sha256, read_head
from arena_distill.models.label_tokens import LABEL_TOKENS_FILE
from arena_distill.models.quantized import is_quantized
from arena_distill.runtime.artifacts import read_manifest, write_atomically
from arena_distill.runtime.errors import InputError

Head = Mapping[str, torch.Tensor]


def student_head(directory: Path) -> Head:
    """The trained head of any student: plain, adapter, merged or quantized.

    A quantized student's is the copy beside its weights, which it computes with; any other's is in the weights.

    Raises:
        InputError: there is none, or it is not the one that the manifest names.
    """
    recorded = (read_manifest(directory) or {}).get("head_sha256")
    beside = directory / HEAD_SAFETENSORS
    head = read_head_file(beside) if is_quantized(directory) and beside.is_file() else _of_weights(directory)
    if recorded not in (None, (found := head_sha256(head))):
        raise InputError(
            f"{directory}: its head is {found[:12]}, and its manifest says {recorded[:12]}: a foreign or random head "
            "-> make this student again"
        )
    return head


def _of_weights(directory: Path) -> Head:
    if (directory / LABEL_TOKENS_FILE).is_file():
        raise InputError(
            f"{directory}: answers by label tokens and has no classification head -> there is none to export"
        )
    head = read_head(directory)
    _check(head, str(directory))
    return head


def read_head_file(path: Path) -> Head:
    """The tensors of a file that ``write_head`` or ``save_head`` wrote.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        head = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as a head ({reason}) -> export it again") from error
    _check(head, str(path))
    return dict(head)


def _check(head: object, where: str) -> None:
    """Whether it can be the head of a three-way classifier."""
    advice = f"give a student's head, with {len(CLASSES)} outputs"
    if not isinstance(head, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in head.values()):
        raise InputError(f"{where}: is no dictionary of tensors -> {advice}")
    if strange := [name for name in head if not set(str(name).split(".")) & set(HEAD_MODULES)]:
        raise InputError(f"{where}: holds {strange[0]!s:.60}, which is of no head -> {advice}")
    if not any(tensor.ndim == 2 and tensor.shape[0] == len(CLASSES) for tensor in head.values()):
        raise InputError(f"{where}: has no layer with {len(CLASSES)} outputs -> {advice}")
    if damaged := [name for name, tensor in head.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{where}: {damaged[0]} holds NaN or infinite values -> train or export it again")


def write_head(head: Head, path: Path) -> None:
    """Write the head, whole or not at all: ``.safetensors``, or a ``.pt`` for ``torch.load(weights_only=True)``."""
    tensors = {name: tensor.contiguous() for name, tensor in head.items()}
    if path.suffix == ".safetensors":
        write_atomically(path, save(tensors, metadata={"format": "pt"}))
        return
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomically(path, buffer.getvalue())


def student_head_sha256(directory: Path) -> str | None:
    """Identity of the head that a student has; None for label-token models.

    Raises:
        InputError: it is not the one that the manifest names.
    """
    if (directory / LABEL_TOKENS_FILE).is_file():
        return None
    return head_sha256(student_head(directory))


def require_same_head(directory: Path, given: Path) -> None:
    """Refuse a head that the model in ``directory`` was not trained with.

    Args:
        directory: a student.
        given: an exported head, or another student's directory.

    Raises:
        InputError: it is another one; names both.
    """
    offered = head_sha256(student_head(given) if given.is_dir() else read_head_file(given))
    own = student_head_sha256(directory)
    if offered != own:
        raise InputError(
            f"{given}: is the head {offered[:12]}, not that of {directory} ({'none' if own is None else own[:12]}): a "
            "foreign or random head -> export the head of the student that this model was made of"
        )
