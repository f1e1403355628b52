"""Settings of the student path (``main.py --mode student-…``)."""

from __future__ import annotations

import glob
import importlib.util
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from arena_distill.inference.tta_lengths import lengths_of, lengths_text
from arena_distill.runtime.run_settings import RunSettings
from arena_distill.training.temperature_schedule import temperature_schedule

Mode = Literal[
    "train",
    "inference",
    "student-train",
    "student-distill-train",
    "student-calibrate",
    "student-eval-holdout",
    "student-infer",
]


TRACKERS = ("tensorboard", "wandb", "mlflow")


def trackers(text: str) -> str:
    """Names of installed experiment trackers, comma list."""
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"unknown tracker {unknown[0]!r}: use {', '.join(TRACKERS)}, or none")
    if absent := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{absent[0]} is not installed: pip install {absent[0]}")
    return ",".join(names) or "none"


class StudentSettings(RunSettings):
    """Everything the student path can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("STUDENT_", "DISTILL_", "CV_")

    mode: Mode = Field(description="what to do; required")

    train_csv: str = Field(
        "",
        description="training votes (.csv, .parquet, .jsonl); default data/[lmsys-chatbot-arena/]train.csv",
    )
    test_csv: str = Field("", description="rows to predict; default data/[lmsys-chatbot-arena/]test.csv")
    labels_csv: str = Field(
        "", description="votes on the test rows; with it student-infer prints a table (and needs --train-csv)"
    )
    truth_parquet: str = Field(
        "", description="true probabilities of the test rows (.parquet), for the Bayes-optimal line of that table"
    )
    report_to: Annotated[str, AfterValidator(trackers)] = Field(
        "none", description="experiment trackers, comma list: tensorboard, wandb, mlflow, or none"
    )

    student_model: str = Field("distilbert-base-uncased", description="backbone: hub name or directory")
    student_output_model_dir: str = Field(
        "", description="the student; default model_save/[RUN/]student_distilbert[_fold_K]"
    )
    student_submission_path: str = Field("", description="default sub/[RUN_]student_submission[_fold_K].csv")

    student_seed: int | None = Field(
        None, ge=0, lt=2**32, description="of initialisation, row order and dropout; default: SEED, which splits rows"
    )
    student_epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    student_max_steps: int = Field(0, ge=0, description="stop after this many optimizer steps; 0: by epochs")
    student_max_samples: int = Field(0, ge=0, description="train on this many base rows only, drawn by seed; 0: all")
    student_max_length: int = Field(
        512, ge=16, description="tokens a sequence (prompt + both answers); later modes take the student's"
    )
    student_learning_rate: float = Field(5e-5, gt=0, description="peak, AdamW")
    student_head_learning_rate: float = Field(0.0, ge=0, description="of the classification head; 0: as the rest")
    student_warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of the steps")
    student_weight_decay: float = Field(0.01, ge=0, description="AdamW")
    student_label_smoothing: float = Field(
        0.05, ge=0, lt=1, description="mass moved from the vote to all three classes"
    )
    student_early_stopping: int = Field(
        2, ge=0, description="evaluations without a better log loss; 0: never stop early"
    )
    student_train_batch_size: int = Field(16, ge=1, le=65536, description="rows a device and step")
    student_eval_batch_size: int = Field(
        32, ge=1, le=65536, description="rows: budget is this many of --student-max-length tokens"
    )
    student_grad_accum: int = Field(1, ge=1, le=65536, description="steps summed before an update")
    student_gradient_checkpointing: bool = Field(False, description="less memory, about 30 percent more time")
    student_fp16: bool = Field(False, description="train and infer in float16 (CUDA only)")
    student_bf16: bool = Field(False, description="train and infer in bfloat16")
    student_num_workers: int = Field(0, ge=0, le=256, description="data loader processes")
    student_save_steps: int = Field(
        0, ge=0, description="checkpoint and evaluate every this many steps; 0: every epoch"
    )
    student_swap_augment: bool = Field(False, description="train on both orders of every pair")
    student_use_fast_tokenizer: bool = Field(True, description="the Rust tokenizer, where the model has one")

    student_extra_csvs: str = Field("", description="extra training files, comma list; never held out")
    student_shuffle_ab: bool = Field(False, description="swap A and B in a random half of the extra rows")
    student_dedup_by_prompt: bool = Field(
        False, description="keep the first row of each prompt, base rows before extra"
    )
    student_stats_only: bool = Field(False, description="count rows and tokens, time a dry run, train nothing")

    distill_teachers: str = Field(
        "", description="teachers' raw logits, comma list of .npy files or globs; default: all that step 4 wrote"
    )
    distill_teacher_values: Literal["logits", "probabilities"] = Field(
        "logits", description="what those files hold; step 4's teacher_logits_fold_K.npy are logits"
    )
    distill_alpha: float = Field(0.7, ge=0, le=1, description="share of the teachers in the loss, the rest is votes'")
    distill_temp: float = Field(3.0, gt=0, description="temperature of teachers and student in that share")
    distill_temp_schedule: Annotated[str, AfterValidator(temperature_schedule)] = Field(
        "", description="linear:5,2 goes from 5 to 2 in the course of the training, instead of --distill-temp"
    )
    distill_mse_weight: float = Field(0.0, ge=0, description="squared difference of the probabilities counts this much")
    distill_cosine_weight: float = Field(0.0, ge=0, description="1 - cosine of the softened probabilities likewise")
    cv_num_folds: int = Field(5, ge=2, le=100, description="folds of the base file, as step 2 makes them")
    cv_fold_idx: int | None = Field(
        None, ge=0, description="hold out this fold (from 0) instead of a tenth each for calibration and holdout"
    )

    student_infer_8bit: bool = Field(
        False, description="compute in 8 bits on a CPU with VNNI; elsewhere int8 weights (bitsandbytes); head as it is"
    )
    student_infer_tta_lengths: Annotated[str, AfterValidator(lengths_text)] = Field(
        "", description="length limits to average over, such as 512,1024; default: the student's own limit"
    )
    student_infer_tta_swap: bool = Field(True, description="average over both orders of the answers")

    @model_validator(mode="after")
    def _consistent(self) -> StudentSettings:
        if self.student_fp16 and self.student_bf16:
            raise ValueError("--student-fp16 and --student-bf16 exclude each other: choose one")
        if self.cv_fold_idx is not None and self.cv_fold_idx >= self.cv_num_folds:
            raise ValueError(f"--cv-fold-idx {self.cv_fold_idx}: the folds are numbered 0 … {self.cv_num_folds - 1}")
        return self

    @property
    def distills(self) -> bool:
        """Whether teachers have a part in the training."""
        weights = (self.distill_alpha, self.distill_mse_weight, self.distill_cosine_weight)
        return self.mode == "student-distill-train" and any(weights)

    @property
    def training_seed(self) -> int:
        """Of all that is random in training."""
        return self.seed if self.student_seed is None else self.student_seed

    @property
    def fold_suffix(self) -> str:
        """``_fold_K`` if a fold is held out."""
        return "" if self.cv_fold_idx is None else f"_fold_{self.cv_fold_idx}"

    @property
    def model_dir(self) -> Path:
        """Where the student is, or will be."""
        if self.student_output_model_dir:
            return self._of_fold(Path(self.student_output_model_dir))
        return self.model_save / f"student_distilbert{self.fold_suffix}"

    def _of_fold(self, given: Path) -> Path:
        """``given`` with the fold in its name, so that no fold takes the place of another."""
        if self.cv_fold_idx is None or re.search(r"_fold_\d+$", given.stem):
            return given
        return given.with_name(f"{given.stem}{self.fold_suffix}{given.suffix}")

    @property
    def teacher_patterns(self) -> str | list[str]:
        """Where teachers' logits are: as given, else step 4's, of this run or, if it has none, of no run."""
        if self.distill_teachers:
            return self.distill_teachers
        own, common = (directory / "teacher_logits" for directory in (self.model_save, self.output_dir / "model_save"))
        directory = glob.escape(str(own if any(own.glob("*_fold_*/teacher_logits_fold_*.npy")) else common))
        return [f"{directory}/*_fold_*/teacher_logits_fold_*.npy"]

    @property
    def submission_path(self) -> Path:
        """Where ``student-infer`` writes."""
        if self.student_submission_path:
            return self._of_fold(Path(self.student_submission_path))
        prefix = f"{self.run}_" if self.run else ""
        return self.output_dir / "sub" / f"{prefix}student_submission{self.fold_suffix}.csv"

    @property
    def extra_csvs(self) -> list[Path]:
        """Extra training files."""
        return [Path(part.strip()) for part in self.student_extra_csvs.split(",") if part.strip()]

    @property
    def tta_lengths(self) -> list[int]:
        """Length limits of test-time augmentation, tokens; empty: the student's own."""
        return lengths_of(self.student_infer_tta_lengths)
