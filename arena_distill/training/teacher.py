"""Training one teacher: LoRA or QLoRA on a causal LM's label tokens, or any backbone with a new classification head.

What it can do: label tokens or a new head, LoRA, 4-bit bases, full fine-tuning of small backbones, swap augmentation,
several GPUs and nodes by torchrun (FSDP on GPUs, DDP on CPUs), and going on after a kill. What it doesn't: choose a
checkpoint by held-out rows. The held-out fold is scored once, after the last step, so its labels change nothing.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from arena_distill.data.fold_rows import FoldRows, fold_rows
from arena_distill.data.folds import load_folds
from arena_distill.data.loading import Loaded, load_labelled
from arena_distill.data.prompts import View
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.models.classifier import check_lengths
from arena_distill.runtime.artifacts import publish, write_manifest
from arena_distill.runtime.interruption import checkpointing
from arena_distill.training.arguments import Schedule, logging_steps, training_arguments
from arena_distill.training.datasets import make_dataset
from arena_distill.training.judge_model import JudgeModel, Recipe, make_model
from arena_distill.training.losses import votes_loss
from arena_distill.training.processes import is_main_process, locked_by_main, process_count, say, wait_for_all
from arena_distill.training.resumable import complete_saved_model, save_every, sharding, train_resumably
from arena_distill.training.teacher_job import STAGE, TeacherJob
from arena_distill.training.teacher_settings import TeacherSettings
from arena_distill.training.trainer import PreferenceTrainer

BOTH_ORDERS = (False, True)


@dataclass(frozen=True)
class TeacherData:
    """The base file and extra files, read once for all folds."""

    path: Path
    base: Loaded
    extras: list[Loaded]

    @classmethod
    def load(cls, settings: TeacherSettings, path: Path) -> TeacherData:
        """Read the files, and check that the folds were made of this base file.

        Raises:
            DataError: a file cannot be used, or the folds belong to another one.
        """
        data = cls(path, load_labelled(path), [load_labelled(extra) for extra in settings.extra_paths])
        load_folds(settings.folds_path).check(data.base.rows, settings.folds_path)
        return data

    def of_fold(self, settings: TeacherSettings, fold: int) -> FoldRows:
        """Train and held-out rows of one fold."""
        extras = [loaded.rows for loaded in self.extras]
        return fold_rows(self.base.rows, extras, load_folds(settings.folds_path), fold)


def train_teacher(settings: TeacherSettings, job: TeacherJob, data: TeacherData) -> float:
    """Train the teacher of one family and fold; its directory appears whole, with ``manifest.json``.

    Returns:
        Log loss on the held-out fold, nats a row; both orders of the answers averaged, as step 4 does.

    Raises:
        ArenaError: bad settings or input, or another job is training the same teacher.
    """
    started = time.time()
    settings = settings.of_family(job.name)
    rows = data.of_fold(settings, job.fold)
    with locked_by_main(job.final):
        if is_main_process():
            job.open_partial()
        trainer, teacher, sequences = _fit(settings, job, rows.train)
        judge = ClassifierJudge(
            trainer.model,
            teacher.tokenizer,
            teacher.layout,
            max_length=settings.teacher_maxlen,
            max_batch_tokens=settings.teacher_eval_tokens,
            autocast=torch.bfloat16 if settings.teacher_bf16 else None,
        )
        views = [View(settings.teacher_maxlen, swap) for swap in BOTH_ORDERS]
        logits = judge.view_logits(rows.val, views).mean(axis=0)  # every process: with FSDP each holds a part
        scores = score(softmax(logits), targets(rows.val))
        trainer.save_model(str(job.partial / "model"))  # every process, for the same reason; the main one writes
        if is_main_process():
            complete_saved_model(job.partial / "model", trainer, teacher)
            write_manifest(
                job.partial / "model",
                stage=STAGE,
                settings=job.settings,
                inputs=job.inputs,
                started=started,
                details={
                    "family": job.name,
                    "fold": job.fold,
                    "base_model": job.base,
                    "base_bits": _recipe(settings).base_bits,
                    "processes": process_count(),
                    "all_settings": settings.dump(),
                    "files": [loaded.summary.as_dict() for loaded in (data.base, *data.extras)],
                    "rows": {
                        "train": len(rows.train),
                        "train_sequences": sequences,
                        "held_out": len(rows.val),
                        "extra_left_out": rows.held_out_extra,
                    },
                    "metrics": {"held_out": scores.as_dict(), "steps": trainer.state.global_step},
                },
            )
            with checkpointing():
                publish(job.partial / "model", job.final)
                shutil.rmtree(job.partial)
        wait_for_all()
    say(
        f"{job.final}: trained in {time.time() - started:.0f} s; log loss {scores.log_loss:.4f} on the "
        f"{len(rows.val):,} rows of fold {job.fold}, which it never saw"
    )
    return scores.log_loss


def _fit(settings: TeacherSettings, job: TeacherJob, train: Rows) -> tuple[PreferenceTrainer, JudgeModel, int]:
    work = job.partial / "training"
    set_seed(settings.seed)
    if settings.teacher_subset_size and settings.teacher_subset_size < len(train):
        chosen = np.random.default_rng(settings.seed).choice(len(train), settings.teacher_subset_size, replace=False)
        train = train.take(np.sort(chosen))
    teacher = make_model(job.base, job.base, _recipe(settings), settings.teacher_fsdp)
    teacher.layout.check_limit(settings.teacher_maxlen, settings.length_setting(job.name))
    check_lengths(teacher.model, [settings.teacher_maxlen], settings.length_setting(job.name))
    dataset = make_dataset(
        train, teacher.tokenizer, teacher.layout, settings.teacher_maxlen, settings.teacher_swap_augment
    )
    trainer = PreferenceTrainer(
        model=teacher.model,
        args=_arguments(settings, job, work, len(dataset)),
        train_dataset=dataset,
        processing_class=teacher.tokenizer,
        pad_id=teacher.tokenizer.pad_token_id,
        loss=votes_loss(settings.teacher_label_smoothing),
    )
    train_resumably(trainer, work, str(job.final))
    return trainer, teacher, len(dataset)


def _recipe(settings: TeacherSettings) -> Recipe:
    return Recipe(
        head=settings.teacher_head,
        label_words=tuple(settings.teacher_label_words.split(",")),
        lora_r=settings.teacher_lora_r,
        lora_alpha=settings.teacher_lora_alpha,
        lora_dropout=settings.teacher_lora_dropout,
        quant=settings.teacher_quant,
        bf16=settings.teacher_bf16,
    )


def _schedule(settings: TeacherSettings) -> Schedule:
    return Schedule(
        epochs=settings.teacher_epochs,
        max_steps=settings.teacher_max_steps,
        batch_size=settings.teacher_per_device_bs,
        grad_accum=settings.teacher_grad_accum,
        learning_rate=settings.teacher_lr,
        warmup_ratio=settings.teacher_warmup_ratio,
        weight_decay=settings.teacher_weight_decay,
        seed=settings.seed,
        bf16=settings.teacher_bf16,
        gradient_checkpointing=settings.teacher_gradient_checkpointing,
        num_workers=settings.teacher_num_workers,
        report_to=settings.report_to,
    )


def _arguments(settings: TeacherSettings, job: TeacherJob, work: Path, rows: int) -> TrainingArguments:
    schedule = _schedule(settings)
    return training_arguments(
        work,
        job.final.name,
        settings.output_dir / "logs",
        schedule,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=settings.teacher_save_steps or save_every(schedule, rows),
        logging_steps=logging_steps(rows, schedule.global_batch),
        **sharding(_recipe(settings), settings.teacher_fsdp, settings.teacher_gradient_checkpointing),
    )
