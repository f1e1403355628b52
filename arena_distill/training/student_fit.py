"""The training of a student, as ``main.py`` and step 5 share it: rows, teachers and a model in, trained weights out."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from arena_distill.data.records import Rows
from arena_distill.models.classifier import check_lengths
from arena_distill.runtime.errors import InputError
from arena_distill.training.datasets import make_dataset
from arena_distill.training.judge_model import JudgeModel
from arena_distill.training.losses import DistillationLoss
from arena_distill.training.processes import is_main_process
from arena_distill.training.resumable import train_resumably
from arena_distill.training.soft_labels import SoftLabels
from arena_distill.training.trainer import LOG_LOSS, PreferenceTrainer

BEST_BY_LOG_LOSS = {
    "load_best_model_at_end": True,
    "metric_for_best_model": LOG_LOSS,
    "greater_is_better": False,
}
"""Training arguments for a run that ends with the weights of its best evaluation."""


@dataclass(frozen=True)
class Lesson:
    """What a student learns from, and how."""

    train: Rows
    selection: Rows  # choose the checkpoint
    teachers: SoftLabels | None
    loss: DistillationLoss
    max_length: int  # tokens
    length_setting: str  # that said so, for messages
    swap_augment: bool
    early_stopping: int  # evaluations without a better log loss; 0: never
    head_learning_rate: float  # 0: as the rest


@dataclass(frozen=True)
class Fitted:
    """A trained student, its best weights loaded."""

    trainer: PreferenceTrainer
    sequences: int  # trained on in an epoch
    initial_sha256: str  # of all weights that train, before the first step

    @property
    def best_log_loss(self) -> float:
        """Of the selection rows, nats; one order of the answers."""
        return float(self.trainer.state.best_metric or float("nan"))

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return int(self.trainer.state.global_step)


def fit(lesson: Lesson, student: JudgeModel, arguments: TrainingArguments, name: str) -> Fitted:
    """Train ``student``, from the last whole checkpoint in the arguments' ``output_dir`` if there is one.

    Args:
        lesson: what it learns.
        student: the model with fresh head and adapter.
        arguments: of the Trainer; must evaluate.
        name: for messages.

    Raises:
        ArenaError: a length limit that the model cannot read, a full disk, or a training that diverged.
    """
    work = Path(str(arguments.output_dir))
    student.layout.check_limit(lesson.max_length, lesson.length_setting)
    check_lengths(student.model, [lesson.max_length], lesson.length_setting)
    _require_disk(student.model, work)
    initial = _sha256_of_trained(student.model) if is_main_process() else ""
    dataset = make_dataset(
        lesson.train, student.tokenizer, student.layout, lesson.max_length, lesson.swap_augment, lesson.teachers
    )
    selection = make_dataset(lesson.selection, student.tokenizer, student.layout, lesson.max_length, swap_too=False)
    trainer = PreferenceTrainer(
        model=student.model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=selection.longest_first(),
        processing_class=student.tokenizer,
        pad_id=student.tokenizer.pad_token_id,
        loss=lesson.loss,
        head_learning_rate=lesson.head_learning_rate,
    )
    if lesson.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(lesson.early_stopping))
    train_resumably(trainer, work, name)
    return Fitted(trainer, len(dataset), initial)


def hearing(teachers: SoftLabels, train: Rows) -> str:
    """How many training rows any teacher speaks of; the others have their votes alone."""
    heard = teachers.heard(train)
    base = train["base_idx"].to_numpy() >= 0
    text = (
        f"distillation  {int(heard.sum()):,} of {len(train):,} training rows have teachers' labels; votes alone teach "
        f"{int((~heard & base).sum()):,} base rows and {int((~heard & ~base).sum()):,} extra rows"
    )
    if heard[base].mean() < 1 / 2:
        text += (
            "\nWARNING: fewer than half of the base rows have teachers' labels. All folds' files together are the "
            "out-of-fold labels; one fold's own holds only the rows that this fold leaves out."
        )
    return text


def _require_disk(model: torch.nn.Module, work: Path) -> None:
    """Three checkpoints (best, last and new; weights and two Adam moments each) and the finished model must fit."""
    needed = 10 * 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise InputError(
            f"{work}: training writes up to {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free -> free some, "
            "or choose another --output-dir"
        )


def _sha256_of_trained(model: torch.nn.Module) -> str:
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            values = parameter.detach().float().cpu().contiguous().numpy()
            whole.update(f"{name}\0{values.shape}\0".encode())
            whole.update(np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()
