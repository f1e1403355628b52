"""Settings of step 4, in which teachers score the rows that they never saw, and of what reads its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from arena_distill.data.fold_numbers import fold_numbers, folds_list
from arena_distill.runtime.run_settings import FoldedSettings


class OofTableSettings(FoldedSettings):
    """A run that writes or reads the out-of-fold table."""

    infer_oof_table: str = Field("", description="default model_save/[RUN/]teacher_logits/oof_probs.parquet")

    @property
    def logits_dir(self) -> Path:
        """Where the folds' logits are."""
        return self.model_save / "teacher_logits"

    @property
    def table_path(self) -> Path:
        """The out-of-fold table."""
        return Path(self.infer_oof_table) if self.infer_oof_table else self.logits_dir / "oof_probs.parquet"


class OofSettings(OofTableSettings):
    """Everything step 4 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("INFER_",)

    infer_folds: Annotated[str, AfterValidator(folds_list)] = Field("all", description="all, or numbers such as 0,1,2")
    infer_models: str = Field("all", description="names of teachers, comma list (llama3-70b,qwen2-72b), or all")
    infer_prefer_lora: bool = Field(False, description="use base + adapter even where a merged model is there")
    infer_max_seq_len: int = Field(0, ge=0, description="length limit, tokens; 0: what the teacher was trained with")
    infer_batch_tokens: int = Field(16384, ge=16, description="tokens of a batch, padding included")
    infer_swap: bool = Field(True, description="score both orders of the answers and average their logits")
    infer_quant: Literal["auto", "nf4", "none"] = Field(
        "auto", description="base weights of an adapter in 4 bits or not; auto: as it was trained"
    )
    infer_save_lasttok: bool = Field(False, description="also save what the head reads, float16 [N, hidden size]")
    infer_force_regen: bool = Field(False, description="score again even if up-to-date logits are there")
    infer_train_shards: int = Field(1, ge=1, le=4096, description="parts that each fold's work is divided into")
    infer_train_shard_id: int | None = Field(None, ge=0, description="the part to do now, from 0")
    infer_baselines: bool = Field(True, description="print prior, length and TF-IDF, fitted fold by fold, beside it")
    truth_parquet: str = Field(
        "",
        description="true probabilities, for the Bayes line; default: truth.parquet beside the train file",
    )

    @model_validator(mode="after")
    def _consistent(self) -> OofSettings:
        if self.infer_train_shard_id is None:
            if self.infer_train_shards > 1:
                raise ValueError("INFER_TRAIN_SHARDS needs INFER_TRAIN_SHARD_ID: say which part this job does")
        elif self.infer_train_shard_id >= self.infer_train_shards:
            raise ValueError(
                f"INFER_TRAIN_SHARD_ID={self.infer_train_shard_id}: with INFER_TRAIN_SHARDS={self.infer_train_shards} "
                f"the parts are 0 … {self.infer_train_shards - 1}"
            )
        return self

    @property
    def wanted_folds(self) -> list[int]:
        """Folds to score."""
        return fold_numbers(self.infer_folds, self.n_folds)

    @property
    def wanted_models(self) -> list[str]:
        """Names of teachers; empty: all there are."""
        names = [name.strip() for name in self.infer_models.split(",") if name.strip()]
        return [] if names == ["all"] else list(dict.fromkeys(names))
