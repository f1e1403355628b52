"""One student of step 5 to be trained: what determines it, and whether it is there already. Imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from arena_distill.data.find_file import find_file
from arena_distill.data.fold_files import fold_csv
from arena_distill.data.folds import load_folds
from arena_distill.data.reading import data_sha256
from arena_distill.models.backbone import check_backbone, model_identity
from arena_distill.runtime.artifacts import (
    MANIFEST,
    read_manifest,
    recover,
    require_replaceable,
    sha256_file,
    sha256_path,
    write_atomically,
)
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import DISTILL_STUDENT, INFER_TEACHER_LOGITS, MAKE_FOLDS
from arena_distill.training.clean_base import require_clean_base
from arena_distill.training.distill_settings import DistillSettings

STAGE = DISTILL_STUDENT.name
PARTS: tuple[Literal["train"], Literal["val"]] = ("train", "val")
JOB_FILE = "job.json"  # beside the checkpoints of an unfinished run

# What these settings say does not change the weights; files count by their content.
_WITHOUT_EFFECT = {
    "train_csv", "extra_data", "folds_json", "folds_out_dir", "infer_oof_table", "output_dir", "run", "force",
    "report_to", "student_folds", "student_model_name", "student_name", "student_outdir", "student_overwrite",
    "resume_checkpoint", "student_eval_tokens", "student_num_workers",
}  # fmt: skip
_ONLY_WITH_TEACHERS = {"student_teachers", "student_t_soft", "student_temp_schedule"}
_IN_CHECKPOINT = (
    "seed", "student_quant", "student_lora_r", "student_lora_alpha", "student_lr", "student_head_lr",
    "student_weight_decay",
)  # fmt: skip
_ORIGIN = (
    "folds_json",
    "fold_train_csv",
    "fold_val_csv",
    "student_model",
)  # inputs that a checkpoint to go on from must share


@dataclass(frozen=True, kw_only=True)
class DistillJob(Job):
    """A training run as its manifest will record it."""

    fold: int
    base: str  # hub name or directory
    train_file: Path
    fold_train: Path
    fold_val: Path
    table: Path | None  # None: votes alone
    checkpoint: Path | None  # to go on from, if there is none of its own

    def write_record(self) -> None:
        """Leave with the checkpoints what they are of."""
        record = {"stage": STAGE, "fold": self.fold, "settings": self.settings, "inputs": self.inputs}
        write_atomically(self.partial / "training" / JOB_FILE, json.dumps(record, indent=1))


def plan_students(settings: DistillSettings) -> list[DistillJob]:
    """Every student that the settings ask for, after a look at all inputs.

    Raises:
        InputError: an input is missing, or an output directory holds something that is not ours to replace.
        SettingsError: a fold that the folds file does not have, or a finished student that may not be replaced.
    """
    train_file = find_file(settings.train_csv, "train", "--train-csv")
    inputs = {"train_csv": data_sha256(train_file)}
    folds = load_folds(settings.folds_path)
    inputs["folds_json"] = sha256_file(settings.folds_path)
    folds.check_count(settings.n_folds, settings.folds_path)
    if beyond := [fold for fold in settings.fold_numbers if fold >= folds.n_folds]:
        raise SettingsError(
            f"--student-folds (or STUDENT_FOLDS): {settings.folds_path} has the folds 0 … {folds.n_folds - 1}, "
            f"no fold {beyond[0]}"
        )
    base = check_backbone(settings.student_model_name, "STUDENT_MODEL_NAME")
    require_clean_base(base, folds, "STUDENT_MODEL_NAME")
    inputs["student_model"] = model_identity(base)
    table = settings.table_path if settings.distills else None
    if table is not None:
        if not table.is_file():
            raise InputError(
                f"{table}: no out-of-fold table -> run {INFER_TEACHER_LOGITS.script} first, or name it in "
                "INFER_OOF_TABLE (STUDENT_ALPHA=0 learns from votes alone)"
            )
        inputs["oof_table"] = sha256_file(table)
    idle = set() if settings.distills else _ONLY_WITH_TEACHERS
    decisive = {name: value for name, value in settings.dump().items() if name not in _WITHOUT_EFFECT | idle}
    return [_job(settings, fold, decisive, inputs, train_file, base, table) for fold in settings.fold_numbers]


def _job(
    settings: DistillSettings,
    fold: int,
    decisive: dict[str, Any],
    inputs: dict[str, str],
    train_file: Path,
    base: str,
    table: Path | None,
) -> DistillJob:
    parts = {part: fold_csv(settings.fold_data, fold, part) for part in PARTS}
    for path in parts.values():
        if not path.is_file():
            raise InputError(f"{path}: no such fold file -> run {MAKE_FOLDS.script}, or name them in FOLDS_OUT_DIR")
    final = settings.student_dir(fold)
    given = Path(settings.student_outdir)
    if (other := re.search(r"_fold_(\d+)$", given.name)) and given != final:
        raise SettingsError(f"STUDENT_OUTDIR={given}: is of fold {other[1]}, not {fold} -> leave the number out")
    recover(final)
    require_replaceable(final, STAGE)
    job = DistillJob(
        settings=decisive | {"fold": fold},
        inputs=inputs | {f"fold_{part}_csv": sha256_file(path) for part, path in parts.items()},
        final=final,
        fold=fold,
        base=base,
        train_file=train_file,
        fold_train=parts["train"],
        fold_val=parts["val"],
        table=table,
        checkpoint=None,
    )
    if settings.resume_checkpoint:
        job = _from_checkpoint(job, Path(settings.resume_checkpoint))
    if not (settings.student_overwrite or settings.force) and (changed := job.replaces()):
        raise SettingsError(
            f"{final}: holds a finished student made otherwise ({changed}) -> STUDENT_OVERWRITE=1 replaces it; another "
            "RUN, STUDENT_NAME or STUDENT_OUTDIR keeps it"
        )
    return job


def _from_checkpoint(job: DistillJob, checkpoint: Path) -> DistillJob:
    """``job`` going on from ``checkpoint``, unless that is one of its own, from which it goes on anyway."""
    if not (checkpoint / "trainer_state.json").is_file():
        raise InputError(
            f"RESUME_CHECKPOINT={checkpoint}: no checkpoint there -> give a directory like …/checkpoint-120, or leave "
            "it out: the same command goes on by itself"
        )
    if checkpoint.resolve().parent == (job.partial / "training").resolve():
        return job
    record = _record_of(checkpoint)
    if record is None or record["stage"] != STAGE:
        raise InputError(
            f"RESUME_CHECKPOINT={checkpoint}: nothing beside it tells what it was trained on ({JOB_FILE}, or the "
            f"student's {MANIFEST}) -> leave it in its place"
        )
    if record["fold"] != job.fold:
        raise InputError(
            f"RESUME_CHECKPOINT={checkpoint}: is of fold {record['fold']} and has seen rows that fold {job.fold} holds "
            f"out -> give a checkpoint of fold {job.fold}"
        )
    for name in _ORIGIN:
        if record["inputs"].get(name) != job.inputs[name]:
            raise InputError(f"RESUME_CHECKPOINT={checkpoint}: was trained with another {name} -> start without it")
    for name in _IN_CHECKPOINT:
        old, new = record["settings"].get(name), job.settings[name]
        if old != new:
            raise InputError(
                f"RESUME_CHECKPOINT={checkpoint}: was trained with {name} {old}, which weights or optimizer hold, and "
                f"cannot go on with {new} -> give the same, or start without it"
            )
    return replace(job, checkpoint=checkpoint, inputs=job.inputs | {"checkpoint": sha256_path(checkpoint)})


def _record_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((checkpoint.parent / JOB_FILE).read_text("utf-8"))
        return record if {"stage", "fold", "settings", "inputs"} <= record.keys() else None
    except FileNotFoundError:
        return read_manifest(checkpoint.parent)
    except (ValueError, AttributeError):
        return None
