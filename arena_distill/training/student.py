"""Fine-tuning a three-way classifier on votes, and on teachers' labels, from settings to a finished directory.

What it can do: any ``AutoModelForSequenceClassification`` backbone, full fine-tuning, soft or hard votes, teachers,
label smoothing, swap augmentation, best checkpoint by Kaggle log loss, early stopping, bf16/fp16, gradient
checkpointing, several processes by torchrun, and going on after a kill as if nothing had happened. What it can't: LoRA
(see step 5).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from arena_distill.runtime.artifacts import publish, write_manifest
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.interruption import checkpointing
from arena_distill.training.arguments import Schedule, logging_steps, training_arguments
from arena_distill.training.judge_model import JudgeModel, Recipe, make_model
from arena_distill.training.losses import DistillationLoss, votes_loss
from arena_distill.training.processes import is_main_process, locked_by_main, process_count, say, wait_for_all
from arena_distill.training.resumable import complete_saved_model, sharding
from arena_distill.training.soft_labels import SoftLabels, read_label_files
from arena_distill.training.student_data import StudentData, load_student_data
from arena_distill.training.student_fit import BEST_BY_LOG_LOSS, Fitted, Lesson, fit, hearing
from arena_distill.training.student_job import STAGE, StudentJob
from arena_distill.training.student_settings import StudentSettings
from arena_distill.training.temperature_schedule import TemperatureSchedule

_RECIPE = Recipe(head="seq_cls", label_words=(), lora_r=0, lora_alpha=1, lora_dropout=0.0, quant="none", bf16=False)


def train_student(settings: StudentSettings, job: StudentJob) -> Path:
    """Train a student.

    A run that was killed goes on from its last checkpoint and ends with the same weights. The directory appears
    whole, with ``manifest.json``; a model that stood there before stays until then.

    Returns:
        The student's directory.

    Raises:
        ArenaError: bad settings or input, or another job is training the same student.
    """
    started = time.time()
    _check_device(settings)
    data = load_student_data(settings)
    say(data)
    teachers = _teachers(settings, job, data)
    with locked_by_main(job.final):
        if is_main_process():
            job.open_partial()
        try:
            student, fitted = _fit(settings, job, data, teachers)
        except BaseException:
            if is_main_process():
                job.drop_if_empty()
            raise
        fitted.trainer.save_model(str(job.partial / "model"))  # every process; the main one writes
        if is_main_process():
            _finish(settings, job, data, teachers, student, fitted, started)
            with checkpointing():
                publish(job.partial / "model", job.final)
                shutil.rmtree(job.partial)
        wait_for_all()
    say(f"{job.final}: trained in {time.time() - started:.0f} s; calibration log loss {fitted.best_log_loss:.4f}")
    return job.final


def _teachers(settings: StudentSettings, job: StudentJob, data: StudentData) -> SoftLabels | None:
    if not job.label_files:
        return None
    probabilities = settings.distill_teacher_values == "probabilities"
    teachers = read_label_files(job.label_files, data.base, job.train_file, probabilities)
    say(teachers.report(data.base))
    say(hearing(teachers, data.train))
    return teachers


def _fit(
    settings: StudentSettings, job: StudentJob, data: StudentData, teachers: SoftLabels | None
) -> tuple[JudgeModel, Fitted]:
    work = job.partial / "training"
    set_seed(settings.training_seed)
    student = make_model(job.backbone, job.backbone, _RECIPE, fast_tokenizer=settings.student_use_fast_tokenizer)
    sequences = len(data.train) * (2 if settings.student_swap_augment else 1)
    arguments = _training_arguments(settings, work, sequences)
    lesson = Lesson(
        train=data.train,
        selection=data.calibration,
        teachers=teachers,
        loss=_loss(settings),
        max_length=settings.student_max_length,
        length_setting="--student-max-length",
        swap_augment=settings.student_swap_augment,
        early_stopping=settings.student_early_stopping,
        head_learning_rate=settings.student_head_learning_rate,
    )
    return student, fit(lesson, student, arguments, str(job.final))


def _loss(settings: StudentSettings) -> DistillationLoss:
    if not settings.distills:
        return votes_loss(settings.student_label_smoothing)
    return DistillationLoss(
        alpha=settings.distill_alpha,
        temperature=TemperatureSchedule.parse(settings.distill_temp_schedule, settings.distill_temp),
        mse_weight=settings.distill_mse_weight,
        cosine_weight=settings.distill_cosine_weight,
        label_smoothing=settings.student_label_smoothing,
    )


def _training_arguments(settings: StudentSettings, work: Path, rows: int) -> TrainingArguments:
    schedule = Schedule(
        epochs=settings.student_epochs,
        max_steps=settings.student_max_steps,
        batch_size=settings.student_train_batch_size,
        grad_accum=settings.student_grad_accum,
        learning_rate=settings.student_learning_rate,
        warmup_ratio=settings.student_warmup_ratio,
        weight_decay=settings.student_weight_decay,
        seed=settings.training_seed,
        bf16=settings.student_bf16,
        fp16=settings.student_fp16,
        gradient_checkpointing=settings.student_gradient_checkpointing,
        num_workers=settings.student_num_workers,
        report_to=settings.report_to,
        eval_batch_size=settings.student_eval_batch_size,
    )
    rhythm: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if steps := settings.student_save_steps:
        rhythm = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": steps, "save_steps": steps}
    return training_arguments(
        work,
        settings.run or settings.model_dir.name,
        settings.output_dir / "logs",
        schedule,
        logging_steps=logging_steps(rows, schedule.global_batch),
        **BEST_BY_LOG_LOSS,
        **rhythm,
        **sharding(_RECIPE, fsdp=False, gradient_checkpointing=settings.student_gradient_checkpointing),
    )


def _check_device(settings: StudentSettings) -> None:
    if settings.student_fp16 and not torch.cuda.is_available():
        raise SettingsError("--student-fp16 needs a CUDA GPU and there is none -> use --student-bf16")


def _finish(
    settings: StudentSettings,
    job: StudentJob,
    data: StudentData,
    teachers: SoftLabels | None,
    student: JudgeModel,
    fitted: Fitted,
    started: float,
) -> None:
    model_dir = job.partial / "model"
    complete_saved_model(model_dir, fitted.trainer, student)
    data.split.save(model_dir)
    write_manifest(
        model_dir,
        stage=STAGE,
        settings=job.settings,
        inputs=job.inputs,
        started=started,
        details={
            "all_settings": settings.dump(),
            "max_length": settings.student_max_length,
            "fold": settings.cv_fold_idx,
            "n_folds": None if settings.cv_fold_idx is None else settings.cv_num_folds,
            "teachers": None if teachers is None else list(teachers.names),
            "processes": process_count(),
            "files": [loaded.summary.as_dict() for loaded in data.loaded],
            "rows": {
                "train": len(data.train),
                "train_sequences": fitted.sequences,
                "with_teacher_labels": 0 if teachers is None else int(teachers.heard(data.train).sum()),
                "calibration": len(data.calibration),
                "holdout": len(data.holdout),
            },
            "fresh_head": student.fresh_head,
            "initial_sha256": fitted.initial_sha256,
            "metrics": {"calibration_log_loss": fitted.best_log_loss, "steps": fitted.steps},
        },
    )
