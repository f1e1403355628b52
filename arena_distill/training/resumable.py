"""Training runs without evaluation that survive kills and spread over processes: steps 1 and 3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from arena_distill.runtime.errors import SettingsError
from arena_distill.training.arguments import Schedule
from arena_distill.training.judge_model import Recipe
from arena_distill.training.processes import is_main_process, process_count, say, wait_for_all
from arena_distill.training.trainer import ProgressReport, last_whole_checkpoint

CHECKPOINTS_A_RUN = 20  # a kill costs a twentieth of the run at most


def save_every(schedule: Schedule, rows: int) -> int:
    """Steps between two checkpoints, for about twenty a run."""
    steps = schedule.max_steps or math.ceil(-(-rows // schedule.global_batch) * schedule.epochs)
    return max(1, steps // CHECKPOINTS_A_RUN)


def sharding(recipe: Recipe, fsdp: bool, gradient_checkpointing: bool) -> dict[str, Any]:
    """Training arguments for several processes: FSDP where the recipe can be sharded, else data-parallel copies."""
    if process_count() == 1:
        return {}
    if fsdp and recipe.can_be_sharded:
        return {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": gradient_checkpointing}}
    return {"ddp_find_unused_parameters": False}


def train_resumably(trainer: Trainer, work: Path, name: str) -> None:
    """Train to the end, from the last whole checkpoint in ``work`` if there is one.

    Raises:
        SettingsError: training diverged.
    """
    args = trainer.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * process_count()
    trainer.add_callback(ProgressReport(rows))
    if is_main_process():
        last_whole_checkpoint(work)  # removes torn ones
    wait_for_all()
    checkpoint = last_whole_checkpoint(work)
    if checkpoint:
        say(f"{name}: going on from {checkpoint.name}")
    # From the checkpoint of a finished run too: that restores the weights and takes no step.
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model: Any = trainer.model
    if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
        raise SettingsError(f"{name}: training diverged, the weights are not finite -> lower the learning rate")
