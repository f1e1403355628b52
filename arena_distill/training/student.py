"""Fine-tuning a three-way classifier on votes, from settings to a finished directory.

What it can do: any ``AutoModelForSequenceClassification`` backbone, full fine-tuning, soft or hard votes, label
smoothing, swap augmentation, best checkpoint by Kaggle log loss, early stopping, bf16/fp16, gradient checkpointing,
and going on after a kill as if nothing had happened. What it can't: LoRA, and more than one process or GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from arena_distill.data.prompts import TextFormat
from arena_distill.models.classifier import check_lengths, load_classifier, load_tokenizer, token_types
from arena_distill.runtime.artifacts import locked, publish, write_atomically, write_manifest
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.training.arguments import Schedule, logging_steps, training_arguments
from arena_distill.training.datasets import make_dataset
from arena_distill.training.student_data import StudentData, load_student_data
from arena_distill.training.student_job import STAGE, StudentJob
from arena_distill.training.student_settings import StudentSettings
from arena_distill.training.trainer import (
    LOG_LOSS,
    PreferenceTrainer,
    ProgressReport,
    is_finished,
    last_whole_checkpoint,
)


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
    with locked(job.final):
        job.open_partial()
        partial = job.partial
        try:
            result, data = _fit(settings, job.backbone, partial / "training")
        except BaseException:
            job.drop_if_empty()
            raise
        _finish(settings, job, data, result, partial / "model", started)
        publish(partial / "model", job.final)
        shutil.rmtree(partial)
    print(f"{job.final}: trained in {time.time() - started:.0f} s; calibration log loss {result.best_log_loss:.4f}")
    return job.final


class _Result:
    """What training leaves behind: the trainer with the best weights loaded, and how it got there."""

    def __init__(self, trainer: PreferenceTrainer, tokenizer: Any, layout: TextFormat, fresh: bool, rows: int) -> None:
        self.trainer, self.tokenizer, self.layout, self.fresh_head, self.rows = trainer, tokenizer, layout, fresh, rows
        self.best_log_loss = float(trainer.state.best_metric or float("nan"))


def _fit(settings: StudentSettings, backbone: str, work: Path) -> tuple[_Result, StudentData]:
    tokenizer = load_tokenizer(backbone, settings.student_use_fast_tokenizer)
    data = load_student_data(settings)
    print(data)
    set_seed(settings.seed)
    model, fresh = load_classifier(backbone, tokenizer, dtype=torch.float32)
    check_lengths(model, [settings.student_max_length], "--student-max-length")
    _require_disk(model, work)
    if fresh:
        print("the classification head is new (the backbone has none with three labels)")
    layout = TextFormat.for_tokenizer(tokenizer, token_types(model))
    dataset = make_dataset(data.train, tokenizer, layout, settings.student_max_length, settings.student_swap_augment)
    calibration = make_dataset(data.calibration, tokenizer, layout, settings.student_max_length, swap_too=False)
    arguments = _training_arguments(settings, work, len(dataset))
    trainer = PreferenceTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=calibration.longest_first(),
        processing_class=tokenizer,
        pad_id=tokenizer.pad_token_id,
        label_smoothing=settings.student_label_smoothing,
    )
    rows_per_step = min(settings.student_train_batch_size * settings.student_grad_accum, len(dataset))
    trainer.add_callback(ProgressReport(rows_per_step))
    if settings.student_early_stopping:
        trainer.add_callback(EarlyStoppingCallback(settings.student_early_stopping))
    checkpoint = last_whole_checkpoint(work)
    if checkpoint:
        print(f"going on from {checkpoint.name}")
    if checkpoint and is_finished(checkpoint):
        trainer.take_best_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _Result(trainer, tokenizer, layout, bool(fresh), len(dataset)), data


def _require_disk(model: torch.nn.Module, work: Path) -> None:
    """Two checkpoints (weights and two Adam moments each) and the finished model must fit, or the run dies later."""
    needed = 7 * 4 * sum(parameter.numel() for parameter in model.parameters())
    free = shutil.disk_usage(work.parent).free
    if free < needed:
        raise InputError(
            f"{work.parent}: training writes up to {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free -> free some, "
            "or choose another --output-dir"
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
        seed=settings.seed,
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
        load_best_model_at_end=True,
        metric_for_best_model=LOG_LOSS,
        greater_is_better=False,
        logging_steps=logging_steps(rows, schedule.global_batch),
        **rhythm,
    )


def _check_device(settings: StudentSettings) -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise SettingsError("student-train runs in one process (WORLD_SIZE is set) -> start it without torchrun")
    if settings.student_fp16 and not torch.cuda.is_available():
        raise SettingsError("--student-fp16 needs a CUDA GPU and there is none -> use --student-bf16")


def _finish(
    settings: StudentSettings, job: StudentJob, data: StudentData, result: _Result, model_dir: Path, started: float
) -> None:
    result.trainer.save_model(str(model_dir))
    (model_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing of ours reads
    result.layout.save(model_dir)
    data.split.save(model_dir)
    state = result.trainer.state
    write_atomically(model_dir / "training_log.json", json.dumps(state.log_history, indent=1))
    write_manifest(
        model_dir,
        stage=STAGE,
        settings=job.settings,
        inputs=job.inputs,
        started=started,
        details={
            "all_settings": settings.dump(),
            "files": [loaded.summary.as_dict() for loaded in data.loaded],
            "rows": {
                "train": len(data.train),
                "train_sequences": result.rows,
                "calibration": len(data.calibration),
                "holdout": len(data.holdout),
            },
            "fresh_head": result.fresh_head,
            "metrics": {"calibration_log_loss": result.best_log_loss, "steps": state.global_step},
        },
    )
