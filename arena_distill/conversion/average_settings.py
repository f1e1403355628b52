"""Settings of step 6: the folds' students averaged into one adapter, and that merged into the base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from arena_distill.data.fold_numbers import fold_numbers, folds_list
from arena_distill.evaluation.eval_rows import EvalRowsSettings


def distinct_folds(text: str) -> str:
    """``all``, or fold numbers separated by commas, each once: a fold that stands twice would weigh double.

    Raises:
        ValueError: it is neither.
    """
    checked = folds_list(text)
    if checked != "all" and len(checked.split(",")) != len([part for part in text.split(",") if part.strip()]):
        raise ValueError("a fold stands there twice, and would count double -> name each once")
    return checked


class AverageSettings(EvalRowsSettings):
    """Everything step 6 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("AVERAGE_", "LORA_DIR_PREFIX", "OUT_LORA", "OUT_MERGED")

    base_model: str = Field("", description="hub name or directory; default: the base that the students' adapters name")
    folds: Annotated[str, AfterValidator(distinct_folds)] = Field(
        "all", description="whose students to average: all, or numbers such as 0,1,2"
    )
    n_folds: int = Field(5, ge=2, le=100, description="parts that the base rows were divided into")
    student_name: str = Field(
        "gemma2-9b", pattern=r"^[\w][\w.-]*$", description="the students are model_save/[RUN/]distilled_NAME_fold_K"
    )
    lora_dir_prefix: str = Field("", description="instead: PREFIX followed by the number of the fold")
    out_lora: str = Field("", description="the averaged adapter; default model_save/[RUN/]avg_lora")
    out_merged: str = Field("", description="base and adapter as one; default model_save/[RUN/]final_merged_model")
    train_csv: str = Field(
        "", description="the students' votes: without a test file, rows to prove the merge on; default: as in step 5"
    )

    average_method: Literal["exact", "mean"] = Field(
        "exact", description="exact: mean of the weight changes; mean: mean of the factors A and of B"
    )
    average_rank: int = Field(
        0, ge=0, le=65536, description="of exact: cut the adapter back to this rank; 0: keep all, folds times the rank"
    )
    merged_dtype: Literal["", "float16", "bfloat16", "float32"] = Field(
        "", description="type of the merged weights: float16, bfloat16 or float32; default: the base's"
    )
    average_eval_rows: int = Field(1000, ge=0, description="test rows to score on, drawn by SEED; 0: all")
    average_eval_tokens: int = Field(16384, ge=16, description="tokens of a scoring batch, padding included")
    average_bf16: Literal["auto", "1", "0"] = Field("auto", description="score in bfloat16; auto: on a GPU")

    @model_validator(mode="after")
    def _consistent(self) -> AverageSettings:
        if self.average_rank and self.average_method != "exact":
            raise ValueError("AVERAGE_RANK belongs to AVERAGE_METHOD=exact: the mean of the factors keeps their rank")
        if beyond := [fold for fold in self.fold_numbers if fold >= self.n_folds]:
            raise ValueError(
                f"FOLDS: with N_FOLDS={self.n_folds} the folds are 0 … {self.n_folds - 1}, not {beyond[0]}"
            )
        return self

    @property
    def fold_numbers(self) -> list[int]:
        """Folds whose students are averaged."""
        return sorted(fold_numbers(self.folds, self.n_folds))

    @property
    def lora_dir(self) -> Path:
        """Where the averaged adapter goes."""
        return Path(self.out_lora) if self.out_lora else self.model_save / "avg_lora"

    @property
    def merged_dir(self) -> Path:
        """Where the merged model goes."""
        return Path(self.out_merged) if self.out_merged else self.model_save / "final_merged_model"

    def student_dir(self, fold: int) -> Path:
        """Where step 5 put the student of a fold."""
        return Path(f"{self.lora_dir_prefix or self.model_save / f'distilled_{self.student_name}_fold_'}{fold}")
