"""Training runs that survive kills and spread over processes."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.interruption import checkpointing, interrupt, requested
from arena_distill.training.arguments import Schedule
from arena_distill.training.judge_model import JudgeModel, Recipe
from arena_distill.training.processes import any_process, is_main_process, process_count, say, wait_for_all
from arena_distill.training.trainer import (
    GroupedTrainer,
    ProgressReport,
    is_finished,
    last_whole_checkpoint,
    localize_best,
)

_WRITE_FAILED = re.compile(r"inline_container|PytorchStreamWriter|unexpected pos|No space left")
CHECKPOINTS_A_RUN = 20  # a kill costs a twentieth of the run at most


def save_every(schedule: Schedule, rows: int, times: int = CHECKPOINTS_A_RUN) -> int:
    """Steps between two checkpoints, for about ``times`` of them a run."""
    steps = schedule.max_steps or math.ceil(-(-rows // schedule.global_batch) * schedule.epochs)
    return max(1, steps // times)


def sharding(recipe: Recipe, fsdp: bool, gradient_checkpointing: bool) -> dict[str, Any]:
    """Training arguments for several processes: FSDP where the recipe can be sharded, else data-parallel copies."""
    if process_count() == 1:
        return {}
    if fsdp and recipe.can_be_sharded:
        config = {"version": 2, "activation_checkpointing": gradient_checkpointing, "cpu_ram_efficient_loading": True}
        return {"fsdp": True, "fsdp_config": config}
    return {"ddp_find_unused_parameters": False}


def train_resumably(trainer: GroupedTrainer, work: Path, name: str) -> None:
    """Train to the end, from the last whole checkpoint in ``work`` if there is one.

    Raises:
        SettingsError: training diverged.
        Interrupted: a signal asked to stop; the step that was being taken is in a checkpoint.
    """
    args = trainer.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * process_count()
    trainer.add_callback(_StopBeforeTheFirstStep())
    trainer.add_callback(ProgressReport(rows))
    if is_main_process():
        last_whole_checkpoint(work)  # removes torn ones
    wait_for_all()
    checkpoint = last_whole_checkpoint(work)
    if checkpoint:
        say(f"{name}: going on from {checkpoint.name}")
        if is_main_process():
            localize_best(checkpoint)
        wait_for_all()
    trainer.add_callback(_StopWhenDiverged(name))
    trainer.add_callback(_SaveAndStop(name))
    try:
        if checkpoint and args.load_best_model_at_end and is_finished(checkpoint):
            trainer.take_best_of(checkpoint)
            _keep_only_best(trainer, work)
        else:
            # From the checkpoint of a finished run too: that restores the weights and takes no step.
            with checkpointing():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model: Any = trainer.model
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            raise _diverged(name)
    except torch.cuda.OutOfMemoryError as error:
        raise SettingsError(
            f"{name}: the GPU's memory is too small -> fewer rows a device (…_PER_DEVICE_BS, with more …_GRAD_ACCUM), "
            "a shorter …_MAXLEN, gradient checkpointing, or …_QUANT=nf4"
        ) from error
    except RuntimeError as error:
        if _WRITE_FAILED.search(str(error)):  # torch's own words for a disk that filled up under a checkpoint
            raise InputError(
                f"{work}: a checkpoint could not be written ({shutil.disk_usage(work).free / 1e9:.2f} GB are free) -> "
                "free some disk; the same command goes on from the checkpoint before"
            ) from error
        raise


def _keep_only_best(trainer: GroupedTrainer, work: Path) -> None:
    """As the Trainer does at the end of a run."""
    wait_for_all()  # all have read the last one's record
    best = trainer.state.best_model_checkpoint
    for checkpoint in work.glob("checkpoint-*") if best and is_main_process() else ():
        if checkpoint.name != Path(best or "").name:
            shutil.rmtree(checkpoint)


def complete_saved_model(directory: Path, trainer: Trainer, judge: JudgeModel) -> None:
    """Put beside the weights that the Trainer saved what our readers need, and take away what nobody reads.

    Raises:
        InputError: there are no weights.
    """
    for leftover in ("training_args.bin", "README.md"):  # a pickle, and peft's empty model card
        (directory / leftover).unlink(missing_ok=True)
    judge.layout.save(directory)
    if judge.labels:
        judge.labels.save(directory)
    write_atomically(directory / "training_log.json", json.dumps(trainer.state.log_history, indent=1))
    if not any(directory.glob("*.safetensors")):
        raise InputError(f"{directory}: no weights were written -> is the disk full?")


class _StopWhenDiverged(TrainerCallback):
    """Ends a run whose loss or gradient is no longer a number, and its checkpoints, which would only go on with it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Look at what was just logged."""
        logged = kw.get("logs") or {}
        if not all(math.isfinite(float(logged.get(key) or 0)) for key in ("loss", "grad_norm")):
            if state.is_world_process_zero:
                shutil.rmtree(args.output_dir or "", ignore_errors=True)
            raise _diverged(self.name)


class _StopBeforeTheFirstStep(TrainerCallback):
    """There is nothing to save yet. Looks before the first sign of life: whoever saw that will see a step saved."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Has a signal come while the model was loaded?"""
        if any_process(requested()):
            interrupt()


class _SaveAndStop(TrainerCallback):
    """When a signal has come, ends the run with the next checkpoint, and has it made at the end of the step.

    It raises: a Trainer that is told to stop would write into the checkpoint that the run has come to its end. Every
    process stops after the same step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stopping = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Ask for a checkpoint, unless one comes anyway once the epoch or the run, which ends here, is evaluated."""
        self._stopping = any_process(requested())
        ends = args.save_strategy == SaveStrategy.EPOCH and float(state.epoch or 0).is_integer()
        if self._stopping and not (ends or control.should_training_stop):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Stop, whatever the checkpoint was made for."""
        if any_process(self._stopping or requested()):  # also while the step was evaluated
            wait_for_all()  # the first process to end takes the others with it, which may be writing still
            say(f"{self.name}: step {state.global_step:,} of {state.max_steps:,} is in checkpoint-{state.global_step}")
            interrupt()


def _diverged(name: str) -> SettingsError:
    return SettingsError(f"{name}: training diverged, its numbers are no longer finite -> lower the learning rate")
