"""Training one student of step 5: LoRA (or every weight) and a classification head, on votes and out-of-fold labels.

What it can do: any sequence-classification backbone, LoRA with a head that is trained in full, 4-bit bases, full
fine-tuning of small encoders, several teachers with weights, several GPUs and nodes by torchrun, and going on after a
kill. What it doesn't: report a figure of rows that steered it. Half of the held-out fold chooses the checkpoint; the
other half only scores, and is calibrated with temperatures of other rows.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainerControl, TrainingArguments, set_seed

from arena_distill.data.prompts import View
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.evaluation.cross_fit import CrossFitted, cross_fit
from arena_distill.evaluation.heldout import HELDOUT_FILE, write_heldout
from arena_distill.evaluation.metrics import row_gaps, score, softmax
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.inference.tta import tta_views
from arena_distill.models.head_file import save_head
from arena_distill.runtime.artifacts import publish, write_atomically, write_manifest
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.interruption import checkpointing
from arena_distill.training.arguments import Schedule, logging_steps, training_arguments
from arena_distill.training.distill_data import StudentRows
from arena_distill.training.distill_job import STAGE, DistillJob
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.judge_model import JudgeModel, Recipe, make_model
from arena_distill.training.losses import DistillationLoss
from arena_distill.training.processes import is_main_process, locked_by_main, process_count, say, wait_for_all
from arena_distill.training.resumable import complete_saved_model, save_every, sharding
from arena_distill.training.soft_labels import SoftLabels
from arena_distill.training.student_fit import BEST_BY_LOG_LOSS, Fitted, Lesson, fit, hearing
from arena_distill.training.temperature_schedule import TemperatureSchedule
from arena_distill.training.trainer import last_whole_checkpoint

EVALUATIONS_A_RUN = 10


def distill_student(
    settings: DistillSettings, job: DistillJob, rows: StudentRows, teachers: SoftLabels | None
) -> float:
    """Train the student of one fold; its directory appears whole, with ``manifest.json``.

    Returns:
        Calibrated log loss on the scoring half of the fold, nats a row; both orders of the answers averaged.

    Raises:
        ArenaError: bad settings or input, or another job is training the same student.
    """
    started = time.time()
    with locked_by_main(job.final):
        try:
            if is_main_process():
                _take_back_checkpoints(job)
                job.open_partial()
                _take_checkpoint(job)
                job.write_record()
            if teachers is not None:
                say(hearing(teachers, rows.train))
            student, fitted = _fit(settings, job, rows, teachers)
        except BaseException:
            if is_main_process():
                job.drop_if_empty()
            raise
        judge = ClassifierJudge(
            fitted.trainer.model,
            student.tokenizer,
            student.layout,
            max_length=settings.student_maxlen,
            max_batch_tokens=settings.student_eval_tokens,
            autocast=torch.bfloat16 if settings.student_bf16 else None,
        )
        logits = judge.view_logits(rows.scoring, _views(settings))  # every process: with FSDP each holds a part
        prompts = rows.scoring["prompt_hash"].to_numpy()
        held_out = cross_fit(logits, targets(rows.scoring), prompts, settings.seed)
        fitted.trainer.save_model(str(job.partial / "model"))  # every process, for the same reason; the main one writes
        for note in held_out.notes:
            say(f"note: {note}")
        if is_main_process():
            metrics = _metrics(fitted, held_out, logits, rows.scoring)
            _finish(settings, job, rows, teachers, student, fitted, held_out, metrics, started)
            with checkpointing():
                publish(job.partial / "model", job.final)
                shutil.rmtree(job.partial)
        wait_for_all()
    loss = float(held_out.report["logloss_holdout_after"])
    say(
        f"{job.final}: trained in {time.time() - started:.0f} s; log loss {loss:.4f} on {len(rows.scoring):,} rows of "
        f"fold {job.fold} that steered nothing"
        + (" (the other folds' teachers have seen them: a second-order leak)" if teachers is not None else "")
    )
    return loss


def _take_back_checkpoints(job: DistillJob) -> None:
    """Undo the last act of ``_finish``, if the run was killed between it and publishing."""
    work = job.partial / "training"
    for checkpoint in (job.partial / "model").glob("checkpoint-*"):
        work.mkdir(parents=True, exist_ok=True)
        checkpoint.rename(work / checkpoint.name)


def _take_checkpoint(job: DistillJob) -> None:
    """Copy the checkpoint to go on from, and the best one beside it, unless the run has one of its own already."""
    work = job.partial / "training"
    work.mkdir(parents=True, exist_ok=True)
    if job.checkpoint is None or last_whole_checkpoint(work):
        return
    state = json.loads((job.checkpoint / "trainer_state.json").read_text("utf-8"))
    best = Path(state.get("best_model_checkpoint") or job.checkpoint).name
    for source in {job.checkpoint.parent / best, job.checkpoint}:
        if source.is_dir():
            shutil.copytree(source, work / source.name)
    if last_whole_checkpoint(work) != work / job.checkpoint.name:
        for copy in work.glob("checkpoint-*"):
            shutil.rmtree(copy)
        raise InputError(f"RESUME_CHECKPOINT={job.checkpoint}: files are missing or cut off -> give another checkpoint")
    # Where the run that wrote it would have ended, and its patience, are not this run's.
    patience = job.settings["student_early_stopping"]
    state["max_steps"] = state["global_step"] + 1
    state["stateful_callbacks"] = {"TrainerControl": TrainerControl().state()}
    if patience:
        state["stateful_callbacks"]["EarlyStoppingCallback"] = EarlyStoppingCallback(patience).state()
    write_atomically(work / job.checkpoint.name / "trainer_state.json", json.dumps(state, indent=2, sort_keys=True))


def _fit(
    settings: DistillSettings, job: DistillJob, rows: StudentRows, teachers: SoftLabels | None
) -> tuple[JudgeModel, Fitted]:
    set_seed(settings.training_seed)  # of head and adapter too: all folds start from the same
    recipe = _recipe(settings)
    student = make_model(job.base, job.base, recipe, settings.student_fsdp)
    sequences = len(rows.train) * (2 if settings.student_swap_augment else 1)
    lesson = Lesson(
        train=rows.train,
        selection=_some(rows.selection, settings.student_eval_rows, settings.seed),
        teachers=teachers,
        loss=DistillationLoss(
            alpha=settings.student_alpha,
            temperature=TemperatureSchedule.parse(settings.student_temp_schedule, settings.student_t_soft),
            mse_weight=settings.student_mse_weight,
            cosine_weight=settings.student_cosine_weight,
            label_smoothing=settings.student_label_smooth,
            teacher_weights=() if teachers is None else teachers.weights,
        ),
        max_length=settings.student_maxlen,
        length_setting="--student-maxlen (or STUDENT_MAXLEN)",
        swap_augment=settings.student_swap_augment,
        early_stopping=settings.student_early_stopping,
        head_learning_rate=settings.student_head_lr,
    )
    return student, fit(lesson, student, _arguments(settings, job, recipe, sequences), str(job.final))


def _some(rows: Rows, count: int, seed: int) -> Rows:
    if not count or count >= len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False)))


def _recipe(settings: DistillSettings) -> Recipe:
    return Recipe(
        head="seq_cls",
        label_words=(),
        lora_r=settings.student_lora_r,
        lora_alpha=settings.student_lora_alpha,
        lora_dropout=settings.student_lora_dropout,
        quant=settings.student_quant,
        bf16=settings.student_bf16,
    )


def _arguments(settings: DistillSettings, job: DistillJob, recipe: Recipe, rows: int) -> TrainingArguments:
    schedule = Schedule(
        epochs=settings.student_epochs,
        max_steps=settings.student_max_steps,
        batch_size=settings.student_per_device_bs,
        grad_accum=settings.student_grad_accum,
        learning_rate=settings.student_lr,
        warmup_ratio=settings.student_warmup_ratio,
        weight_decay=settings.student_weight_decay,
        seed=settings.training_seed,
        bf16=settings.student_bf16,
        gradient_checkpointing=settings.student_gradient_checkpointing,
        num_workers=settings.student_num_workers,
        report_to=settings.report_to,
        eval_batch_size=max(1, settings.student_eval_tokens // settings.student_maxlen),
    )
    steps = settings.student_save_steps or save_every(schedule, rows, EVALUATIONS_A_RUN)
    return training_arguments(
        job.partial / "training",
        job.final.name,
        settings.output_dir / "logs",
        schedule,
        eval_strategy="steps",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        logging_steps=logging_steps(rows, schedule.global_batch),
        **BEST_BY_LOG_LOSS,
        **sharding(recipe, settings.student_fsdp, settings.student_gradient_checkpointing),
    )


def _views(settings: DistillSettings) -> list[View]:
    return tta_views([settings.student_maxlen], swap=True)


def _metrics(fitted: Fitted, held_out: CrossFitted, logits: np.ndarray, scoring: Rows) -> dict[str, Any]:
    votes, temperature = targets(scoring), held_out.report["temperature"]
    gaps = row_gaps(*softmax(logits, temperature))
    return {
        "held_out": score(held_out.probabilities, votes).as_dict(),
        "held_out_uncalibrated": score(softmax(logits).mean(axis=0), votes).as_dict(),
        "swap_gap": float(gaps.mean()),
        "selection_log_loss": fitted.best_log_loss,
        "steps": fitted.steps,
        "best_step": fitted.trainer.state.best_global_step,
    }


def _finish(
    settings: DistillSettings,
    job: DistillJob,
    rows: StudentRows,
    teachers: SoftLabels | None,
    student: JudgeModel,
    fitted: Fitted,
    held_out: CrossFitted,
    metrics: dict[str, Any],
    started: float,
) -> None:
    model_dir = job.partial / "model"
    complete_saved_model(model_dir, fitted.trainer, student)
    save_head(model_dir)
    report = held_out.report | {"second_order_leak": teachers is not None}
    write_calibration(model_dir, report, _views(settings))
    write_heldout(model_dir / HELDOUT_FILE, rows.scoring, held_out.probabilities)
    write_manifest(
        model_dir,
        stage=STAGE,
        settings=job.settings,
        inputs=job.inputs,
        started=started,
        details={
            "all_settings": settings.dump(),
            "base_model": job.base,
            "base_bits": _recipe(settings).base_bits,
            "max_length": settings.student_maxlen,
            "fold": job.fold,
            "n_folds": settings.n_folds,
            "teachers": None if teachers is None else dict(zip(teachers.names, teachers.weights, strict=True)),
            "processes": process_count(),
            "rows": {
                "train": len(rows.train),
                "train_sequences": fitted.sequences,
                "with_teacher_labels": 0 if teachers is None else int(teachers.heard(rows.train).sum()),
                "selection": len(rows.selection),
                "scoring": len(rows.scoring),
            },
            "fresh_head": student.fresh_head,
            "initial_sha256": fitted.initial_sha256,
            "metrics": metrics,
        },
    )
    for checkpoint in (job.partial / "training").glob("checkpoint-*"):
        checkpoint.rename(model_dir / checkpoint.name)
