"""Settings of step 5: one student for each fold, distilled from the out-of-fold table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from arena_distill.data.fold_numbers import fold_numbers, folds_list
from arena_distill.data.fold_settings import FoldFilesSettings
from arena_distill.inference.oof_settings import OofTableSettings
from arena_distill.training.student_settings import trackers
from arena_distill.training.temperature_schedule import temperature_schedule


def teacher_weights(text: str) -> dict[str, float]:
    """``NAME:WEIGHT`` of some teachers, comma list; a name alone weighs 1.

    Raises:
        ValueError: a weight is not a positive number, or a name stands twice.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = part.partition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not (0 < weight < math.inf) or not name or name in weights:
            raise ValueError(f"{part!r}: use names with positive weights, such as llama3-70b:2,qwen2-72b:1")
        weights[name] = weight
    return weights


def _weights_text(text: str) -> str:
    teacher_weights(text)
    return text


class DistillSettings(FoldFilesSettings, OofTableSettings):
    """Everything step 5 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("STUDENT_", "RESUME_CHECKPOINT")

    student_folds: Annotated[str, AfterValidator(folds_list)] = Field(
        "all", description="which folds to train: all, or numbers such as 0,1,2; the script takes them from FOLD too"
    )
    student_model_name: str = Field("google/gemma-2-9b-it", description="backbone: hub name or directory")
    student_name: str = Field(
        "gemma2-9b", pattern=r"^[\w][\w.-]*$", description="the students are model_save/[RUN/]distilled_NAME_fold_K"
    )
    student_outdir: str = Field("", description="instead: OUTDIR_fold_K, or OUTDIR itself if it ends in _fold_K")
    student_overwrite: bool = Field(False, description="train again, in the place of a finished student")
    resume_checkpoint: str = Field(
        "", description="go on from this checkpoint of the same fold; by default from the last one, if there is any"
    )

    student_teachers: Annotated[str, AfterValidator(_weights_text)] = Field(
        "", description="teachers to listen to, with weights (llama3-70b:2,qwen2-72b:1); default: all of the table"
    )
    student_alpha: float = Field(0.7, ge=0, le=1, description="share of the teachers in the loss, the rest is votes'")
    student_t_soft: float = Field(3.0, gt=0, description="temperature of teachers and student in that share")
    student_temp_schedule: Annotated[str, AfterValidator(temperature_schedule)] = Field(
        "", description="linear:5,2 goes from 5 to 2 in the course of the training, instead of STUDENT_T_SOFT"
    )
    student_mse_weight: float = Field(0.0, ge=0, description="squared difference of the probabilities counts this much")
    student_cosine_weight: float = Field(0.0, ge=0, description="1 - cosine of the softened probabilities likewise")
    student_label_smooth: float = Field(0.05, ge=0, lt=1, description="mass moved from the vote to all three classes")

    student_seed: int | None = Field(
        None, ge=0, lt=2**32, description="of initialisation, row order and dropout; default: SEED, as for the folds"
    )
    student_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    student_max_steps: int = Field(0, ge=0, description="stop after this many optimizer steps; 0: by epochs")
    student_lr: float = Field(5e-5, gt=0, description="peak learning rate, AdamW")
    student_head_lr: float = Field(0.0, ge=0, description="of the classification head; 0: as the rest")
    student_warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of the steps")
    student_weight_decay: float = Field(0.01, ge=0, description="AdamW")
    student_maxlen: int = Field(1024, ge=16, description="tokens a sequence (prompt + both answers)")
    student_per_device_bs: int = Field(4, ge=1, le=65536, description="rows a device and step")
    student_grad_accum: int = Field(16, ge=1, le=65536, description="steps summed before an update")
    student_swap_augment: bool = Field(False, description="train on both orders of every pair, at twice the time")
    student_lora_r: int = Field(64, ge=0, le=4096, description="rank; 0: full fine-tune, for small encoders")
    student_lora_alpha: int = Field(128, ge=1, description="the adapter counts alpha / rank")
    student_lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    student_quant: Literal["auto", "nf4", "none"] = Field(
        "auto", description="base weights while training: 4 bits, or 16; auto: nf4 for LoRA on a GPU"
    )
    student_bf16: bool = Field(True, description="compute in bfloat16; frozen base weights too")
    student_gradient_checkpointing: bool = Field(True, description="less memory, about 30 percent more time")
    student_fsdp: bool = Field(True, description="several GPUs (torchrun) share 16-bit weights; 4-bit ones are copied")
    student_early_stopping: int = Field(
        5, ge=0, description="evaluations without a better log loss; 0: never stop early"
    )
    student_save_steps: int = Field(
        0, ge=0, description="evaluate and checkpoint every this many steps; 0: ten times a run"
    )
    student_eval_rows: int = Field(
        1000, ge=0, description="rows that choose the checkpoint: at most so many of their half of the fold; 0: all"
    )
    student_eval_tokens: int = Field(16384, ge=16, description="tokens of a held-out batch, padding included")
    student_num_workers: int = Field(0, ge=0, le=256, description="data loader processes")
    report_to: Annotated[str, AfterValidator(trackers)] = Field(
        "none", description="experiment trackers, comma list: tensorboard, wandb, mlflow, or none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DistillSettings:
        if not self.student_lora_r and self.student_quant == "nf4":
            raise ValueError("STUDENT_LORA_R=0 (full fine-tune) cannot train 4-bit weights: set STUDENT_QUANT=none")
        if self.resume_checkpoint and len(self.fold_numbers) != 1:
            raise ValueError("RESUME_CHECKPOINT belongs to one fold: say which (FOLD=2, or STUDENT_FOLDS=2)")
        return self

    @property
    def distills(self) -> bool:
        """Whether teachers have a part in the training."""
        return any((self.student_alpha, self.student_mse_weight, self.student_cosine_weight))

    @property
    def training_seed(self) -> int:
        """Of all that is random in training, and the same for all folds."""
        return self.seed if self.student_seed is None else self.student_seed

    @property
    def fold_numbers(self) -> list[int]:
        """Folds to train."""
        return fold_numbers(self.student_folds, self.n_folds)

    def student_dir(self, fold: int) -> Path:
        """Where one fold's student goes."""
        default = self.model_save / f"distilled_{self.student_name}"
        prefix = Path(self.student_outdir) if self.student_outdir else default
        suffix = f"_fold_{fold}"
        return prefix if prefix.name.endswith(suffix) else prefix.with_name(prefix.name + suffix)
