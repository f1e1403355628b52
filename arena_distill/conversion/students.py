"""The folds' students as step 5 left them: whole, of the folds that they are named after, and trained alike.

A student that is missing is never passed over: an average of four, called an average of five, would be a lie. Imports
no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.data.prompts import TEXT_FORMAT_FILE
from arena_distill.models.backbone import is_same_model, model_identity
from arena_distill.models.lora_file import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from arena_distill.runtime.artifacts import (
    MANIFEST,
    fingerprint,
    is_up_to_date,
    partial_directory,
    read_manifest,
    sha256_file,
)
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import DISTILL_STUDENT

_DATA = {"train_csv": "training votes", "folds_json": "folds", "student_model": "base model"}


@dataclass(frozen=True)
class FoldStudent:
    """A finished student of one fold."""

    fold: int
    directory: Path
    manifest: dict[str, Any]

    @property
    def identity(self) -> str:
        """What tells its files from those of any other."""
        return fingerprint({}, self.manifest["outputs"])

    @property
    def max_length(self) -> int:
        """Tokens that it was trained and calibrated at."""
        return int(self.manifest["max_length"])

    @property
    def held_out(self) -> dict[str, Any]:
        """Its scores on the rows of its fold that steered nothing."""
        return dict(self.manifest["metrics"].get("held_out") or {})


def read_students(directory: Callable[[int], Path], folds: Sequence[int], n_folds: int) -> list[FoldStudent]:
    """The students of these folds.

    Args:
        directory: of the student of a fold.
        folds: which.
        n_folds: how many there are in all.

    Raises:
        InputError: one is missing, unfinished, no LoRA student or of another fold than its name says, or they do not
            belong together; names the files, and what to do.
    """
    students: list[FoldStudent] = []
    problems = []
    for fold in folds:
        try:
            students.append(_read_student(directory(fold), fold, n_folds))
        except InputError as error:
            problems.append(str(error))
    if problems:  # all of them: each may take a day on the cluster
        raise InputError("; ".join(problems))
    _require_same_origin(students)
    return students


def _read_student(directory: Path, fold: int, n_folds: int) -> FoldStudent:
    remedy = f"FOLD={fold} bash {DISTILL_STUDENT.script}"
    manifest = read_manifest(directory)
    if manifest is None:
        begun = any(directory.parent.glob(f"{partial_directory(directory).name}-*"))
        if directory.is_dir():
            raise InputError(f"{directory}: has no {MANIFEST}, so it is not whole or not ours -> {remedy}")
        state = "begun, and not finished" if begun else "no such student"
        raise InputError(
            f"{directory}: {state} -> {remedy}{' goes on' if begun else ', or correct STUDENT_NAME or LORA_DIR_PREFIX'}"
        )
    if manifest["stage"] != DISTILL_STUDENT.name:
        raise InputError(f"{directory}: was made by {manifest['stage']}, not {DISTILL_STUDENT.name} -> {remedy}")
    if ADAPTER_CONFIG not in manifest["outputs"] and "config.json" in manifest["outputs"]:
        raise InputError(
            f"{directory}: all of its weights were trained, and there is no adapter; step 6 averages LoRA students -> "
            "ensemble the predictions of its folds with step9_eval.sh, or train with STUDENT_LORA_R=64"
        )
    lost = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (directory / name).is_file()]
    if lost or not is_up_to_date(directory, manifest["fingerprint"]):
        what = f"{lost[0]} is missing" if lost else "files are missing or not as step 5 wrote them"
        raise InputError(f"{directory}: {what} -> copy it again, or STUDENT_OVERWRITE=1 {remedy}")
    unsaid = sorted(_DATA.keys() - (manifest.get("inputs") or {}).keys())
    unsaid += [name for name in ("fold", "n_folds", "max_length", "metrics") if manifest.get(name) is None]
    if unsaid:
        raise InputError(
            f"{directory / MANIFEST}: does not say its {', '.join(unsaid)} -> copy the directory again, or "
            f"STUDENT_OVERWRITE=1 {remedy}"
        )
    if manifest.get("fold") != fold:
        raise InputError(
            f"{directory / MANIFEST}: this is the student of fold {manifest.get('fold')}, not of {fold} -> put it back "
            f"under its own name, or {remedy}"
        )
    if manifest.get("n_folds") != n_folds:
        raise InputError(
            f"{directory / MANIFEST}: trained on {manifest.get('n_folds')} folds, N_FOLDS is {n_folds} -> give the "
            "N_FOLDS of the students"
        )
    return FoldStudent(fold, directory, manifest)


def _require_same_origin(students: Sequence[FoldStudent]) -> None:
    first = students[0]
    for other in students[1:]:
        for name, meaning in _DATA.items():
            if other.manifest["inputs"].get(name) != first.manifest["inputs"].get(name):
                raise InputError(
                    f"{other.directory / MANIFEST}: trained with another {meaning} (inputs.{name}) than "
                    f"{first.directory} -> train both with the same; their average would mean nothing"
                )
        if other.max_length != first.max_length:
            raise InputError(
                f"{other.directory / MANIFEST}: trained at {other.max_length} tokens, {first.directory} at "
                f"{first.max_length} -> train both with the same STUDENT_MAXLEN"
            )
        if _text_format(other.directory) != _text_format(first.directory):
            raise InputError(
                f"{other.directory / TEXT_FORMAT_FILE}: assembles texts otherwise than {first.directory} -> train both "
                "with the same version and tokenizer"
            )


def _text_format(directory: Path) -> Any:
    file = directory / TEXT_FORMAT_FILE
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}) -> train this fold's student again") from error


def require_unchanged(student: FoldStudent) -> None:
    """Refuse an adapter that is not, to the byte, what step 5 wrote.

    Raises:
        InputError: a file was changed or damaged since.
    """
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if sha256_file(student.directory / name) != student.manifest["outputs"].get(name):
            raise InputError(
                f"{student.directory / name}: changed or damaged since step 5 wrote it -> copy it again, or "
                f"STUDENT_OVERWRITE=1 FOLD={student.fold} bash {DISTILL_STUDENT.script}"
            )


def require_base_of(students: Sequence[FoldStudent], base: str) -> bool:
    """Refuse a base that the students were not trained on.

    Returns:
        Whether it surely is the same; a hub name and a directory cannot be compared.

    Raises:
        InputError: it is another.
    """
    same = is_same_model(str(students[0].manifest["inputs"].get("student_model") or ""), model_identity(base))
    if same is False:
        raise InputError(
            f"BASE_MODEL={base}: the students ({students[0].directory}) were trained on another base, "
            f"{students[0].manifest.get('base_model')} -> give that one, or leave BASE_MODEL out"
        )
    return bool(same)


def same_start(students: Sequence[FoldStudent]) -> bool:
    """Whether all began with the same factors and the same head, so that these can be averaged one by one."""
    starts = {student.manifest.get("initial_sha256") for student in students}
    return len(students) == 1 or (len(starts) == 1 and None not in starts)
