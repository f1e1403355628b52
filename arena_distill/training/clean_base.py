"""Whether a teacher may start from a model: nothing that its fold holds out may have gone into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arena_distill.data.folds import Folds
from arena_distill.runtime.artifacts import fingerprint, read_manifest
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import DISTILL_STUDENT, LORA_ENSEMBLE, POST_PRETRAIN, QUANTIZE, TRAIN_TEACHERS
from arena_distill.training.post_pretrain_job import BASE_ROWS

JUDGES = (TRAIN_TEACHERS.name, DISTILL_STUDENT.name, LORA_ENSEMBLE.name, QUANTIZE.name, "student-train")
"""Stages whose models have learned votes."""


def require_clean_base(base: str, folds: Folds, setting: str) -> None:
    """Refuse a base that has seen held-out rows, as far as its manifest tells.

    Args:
        base: hub name or directory.
        folds: of the rows that teachers will hold out.
        setting: that names the base.

    Raises:
        InputError: it is a teacher or a student itself, was post-pretrained without leaving out the prompts of these
            rows, or is a merged copy of an adapter that has been trained again since.
    """
    manifest = _manifest_of(base)
    if manifest is None:
        return
    verified = manifest.get("verified") or {}
    if manifest["stage"] in JUDGES or "fold" in verified:
        raise InputError(
            f"{setting}={base}: was trained on votes that teachers hold out -> name the model it was made from"
        )
    made_of = verified.get(POST_PRETRAIN.name)
    if made_of is None:
        return
    if made_of[BASE_ROWS] != folds.rows_sha256:
        raise InputError(
            f"{setting}={base}: step 1 did not leave out the prompts of these rows -> run {POST_PRETRAIN.script} again "
            "with the TRAIN_CSV of the folds"
        )
    adapter = read_manifest(Path(base).with_name(f"{Path(base).name}_lora"))
    if adapter is not None and fingerprint({}, adapter["outputs"]) != made_of["adapter_outputs"]:
        raise InputError(
            f"{setting}={base}: is a merged copy of an earlier {Path(base).name}_lora -> run {POST_PRETRAIN.script} "
            "again, which merges it"
        )


def require_unseen(base: str, train_sha256: str, setting: str) -> None:
    """Refuse a base that was trained on the very votes of which a student will hold some out.

    Args:
        base: hub name or directory.
        train_sha256: hash of the data file.
        setting: that names the base.

    Raises:
        InputError: its manifest names that file among what it was trained on.
    """
    manifest = _manifest_of(base) or {}
    merged = manifest.get("verified") or {}
    judges = manifest.get("stage") in JUDGES or "family" in merged  # others have seen no votes, or not of this file
    if judges and train_sha256 in {**manifest["inputs"], **merged}.values():
        raise InputError(
            f"{setting}={base}: was trained on these very votes, some of which would be held out now -> name the model "
            "it was made from"
        )


def _manifest_of(base: str) -> dict[str, Any] | None:
    return read_manifest(Path(base)) if Path(base).is_dir() else None
