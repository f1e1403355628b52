"""What every training run of ours tells the Hugging Face Trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from arena_distill.models.instructions import has_bfloat16_products
from arena_distill.runtime.errors import SettingsError
from arena_distill.training.processes import process_count, say

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
_CHOSEN_TENSORBOARD_DIR = os.environ.get(_TENSORBOARD)  # the user's, before runs of this process set their own


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and in what pieces a model is trained."""

    epochs: float
    max_steps: int  # optimizer steps; 0: by epochs
    batch_size: int  # rows a device
    grad_accum: int
    learning_rate: float  # peak, AdamW
    warmup_ratio: float
    weight_decay: float
    seed: int
    bf16: bool
    fp16: bool = False
    gradient_checkpointing: bool = False
    num_workers: int = 0
    report_to: str = "none"
    eval_batch_size: int = 32

    @property
    def global_batch(self) -> int:
        """Rows of one optimizer step, over all devices."""
        return self.batch_size * self.grad_accum * process_count()


def training_arguments(work: Path, name: str, logs: Path, schedule: Schedule, **more: Any) -> TrainingArguments:
    """Arguments for a resumable run whose checkpoints are in ``work``.

    Args:
        work: directory of the checkpoints.
        name: of the run, for experiment trackers.
        logs: TensorBoard's files go to ``logs/tensorboard/name``.
        schedule: see ``Schedule``.
        more: further arguments (evaluation, saving, FSDP).

    Raises:
        SettingsError: the settings exclude each other, or a package for them is missing.
    """
    if schedule.bf16 and not torch.cuda.is_available() and not has_bfloat16_products():
        say("note: 16 bits take longer than 32 on this CPU: …_BF16=0 (or no --student-bf16) is faster")
    # The Trainer would put TensorBoard's files among the checkpoints, which go when the model is published.
    os.environ[_TENSORBOARD] = _CHOSEN_TENSORBOARD_DIR or str(logs / "tensorboard" / name)
    try:
        arguments = TrainingArguments(
            output_dir=str(work),
            run_name=name,
            num_train_epochs=schedule.epochs,
            max_steps=schedule.max_steps or -1,
            per_device_train_batch_size=schedule.batch_size,
            per_device_eval_batch_size=schedule.eval_batch_size,
            gradient_accumulation_steps=schedule.grad_accum,
            # Inside FSDP it is FSDP's own, see `sharding`: the Trainer's would gather every layer twice.
            activation_checkpointing=schedule.gradient_checkpointing and "fsdp" not in more,
            learning_rate=schedule.learning_rate,
            warmup_steps=schedule.warmup_ratio,  # a fraction: the Trainer counts steps from 1 on
            weight_decay=schedule.weight_decay,
            bf16=schedule.bf16,
            fp16=schedule.fp16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_num_workers=schedule.num_workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            label_names=["labels"],
            save_total_limit=1,
            restore_callback_states_from_checkpoint=True,
            average_tokens_across_devices=False,  # True doubles loss and gradient under two processes
            include_num_input_tokens_seen="non_padding",
            report_to=schedule.report_to.split(","),
            seed=schedule.seed,
            disable_tqdm=True,
            **more,
        )
    except (ValueError, ImportError) as error:
        raise SettingsError(f"these settings do not go together: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads over all GPUs by threads, with another loss
    return arguments


def logging_steps(rows: int, global_batch: int) -> int:
    """A few lines of loss an epoch, at least every fifty steps."""
    return max(1, min(50, rows // global_batch // 4))
