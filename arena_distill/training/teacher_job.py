"""One teacher to be trained: what determines it, where it goes, and whether it is there already. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arena_distill.data.find_file import find_file
from arena_distill.data.folds import load_folds
from arena_distill.data.reading import data_sha256
from arena_distill.models.backbone import check_backbone, model_identity
from arena_distill.models.merge import STAGE as MERGE_STAGE
from arena_distill.runtime.artifacts import recover, require_replaceable, sha256_file
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import TRAIN_TEACHERS
from arena_distill.training.clean_base import require_clean_base
from arena_distill.training.teacher_settings import TeacherSettings

STAGE = TRAIN_TEACHERS.name

# What these settings say does not change the weights; files count by their content.
_WITHOUT_EFFECT = {
    "train_csv", "extra_data", "folds_json", "output_dir", "run", "force", "report_to", "teacher_folds",
    "llama_ft_base", "qwen_ft_base", "gemma_ft_base", "encoder_ft_base", "skip_llama", "skip_qwen", "skip_gemma",
    "llama_name", "qwen_name", "gemma_name", "encoder_name", "teacher_merge", "teacher_eval_tokens",
    "teacher_num_workers", "teacher_save_steps",
    # those of the encoder stand in the teacher_… settings of its jobs
    "encoder_epochs", "encoder_lr", "encoder_maxlen", "encoder_per_device_bs", "encoder_grad_accum",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TeacherJob(Job):
    """A training run as its manifest will record it."""

    name: str  # of the family
    fold: int
    base: str  # hub name or directory
    train_file: Path
    merged: Path | None  # where a merged copy of an adapter goes


def plan_teachers(settings: TeacherSettings) -> list[TeacherJob]:
    """Every teacher that the settings ask for, family by family, after a look at all inputs.

    Raises:
        InputError: an input is missing or broken, or an output directory holds something that is not ours to replace.
        SettingsError: a fold that the folds file does not have.
    """
    train_file = find_file(settings.train_csv, "train", "--train-csv")
    inputs = {"train_csv": data_sha256(train_file)}
    folds = load_folds(settings.folds_path)
    inputs["folds_json"] = sha256_file(settings.folds_path)
    folds.check_count(settings.n_folds, settings.folds_path)
    if beyond := [fold for fold in settings.fold_numbers if fold >= folds.n_folds]:
        raise SettingsError(
            f"--teacher-folds (or TEACHER_FOLDS): {settings.folds_path} has the folds 0 … {folds.n_folds - 1}, "
            f"no fold {beyond[0]}"
        )
    inputs |= {f"extra_data_{number}": data_sha256(path) for number, path in enumerate(settings.extra_paths)}
    jobs = []
    for name, (setting, given) in settings.families.items():
        if not Path(given).is_dir() and Path(given) == settings.default_base(setting):
            raise InputError(f"{given}: no base model for {name} -> run step 1, or give one in {setting}")
        base = check_backbone(given, setting)
        require_clean_base(base, folds, setting)
        identity = model_identity(base)
        own = settings.of_family(name)
        decisive = {key: value for key, value in own.dump().items() if key not in _WITHOUT_EFFECT}
        for fold in settings.fold_numbers:
            adapter, merged = settings.adapter_dir(name, fold), settings.merged_dir(name, fold)
            final, copy = (adapter, merged) if own.teacher_lora_r else (merged, None)
            recover(final)
            require_replaceable(final, STAGE)
            if copy is not None and settings.teacher_merge != "0":
                require_replaceable(copy, MERGE_STAGE)
            jobs.append(
                TeacherJob(
                    settings=decisive | {"fold": fold},
                    inputs=inputs | {"base_model": identity},
                    final=final,
                    name=name,
                    fold=fold,
                    base=base,
                    train_file=train_file,
                    merged=copy,
                )
            )
    return jobs
