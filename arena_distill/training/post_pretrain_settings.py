"""Settings of step 1: LoRA post-pretraining of base models on extra preference data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, Field, field_validator

from arena_distill.runtime.run_settings import RunSettings
from arena_distill.training.student_settings import trackers
from arena_distill.training.teacher_settings import label_words

FAMILIES = ("llama", "qwen", "gemma")


@dataclass(frozen=True)
class FamilyPlan:
    """One base model and where its results go."""

    family: str
    setting: str  # that names the base
    base: str
    tokenizer: str
    adapter: Path
    merged: Path | None


class PostPretrainSettings(RunSettings):
    """Everything step 1 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("POSTPRE_",)

    run_stage: str = Field("all", description="families: llama, qwen, gemma, a comma list of them, or all")
    ut_data: str = Field("data/ultrafeedback.csv", description="extra preference data, comma list of files")
    train_csv: str = Field(
        "", description="base votes, whose prompts are left out; default data/[lmsys-chatbot-arena/]train.csv if there"
    )
    llama_base: str = Field("meta-llama/Meta-Llama-3-70B-Instruct", description="Llama base: hub name or directory")
    qwen_base: str = Field("Qwen/Qwen2-72B-Instruct", description="Qwen base: hub name or directory")
    gemma_base: str = Field("google/gemma-2-9b-it", description="Gemma base: hub name or directory")
    llama_tok: str = Field("", description="tokenizer of the Llama base, if not in it")
    qwen_tok: str = Field("", description="tokenizer of the Qwen base, if not in it")
    gemma_tok: str = Field("", description="tokenizer of the Gemma base, if not in it")
    auto_downgrade: bool = Field(False, description="take the largest smaller base if the memory is too small")
    llama_ladder: str = Field("", description="bases to fall back to, comma list; default: Llama 3 8B, 3B, 1B")
    qwen_ladder: str = Field("", description="likewise for Qwen; default: Qwen2.5 32B, 14B, Qwen2 7B, 1.5B")
    gemma_ladder: str = Field("", description="likewise for Gemma; default: Gemma-2 9B, 2B")
    scratch_base: str = Field("", description="fast disk for checkpoints; default: beside the adapter")

    postpre_objective: Literal["preference", "lm"] = Field(
        "preference", description="preference: the verdict token, as teachers use it, in both orders; lm: next tokens "
        "of prompt + preferred answer, packed"
    )  # fmt: skip
    postpre_label_words: Annotated[str, AfterValidator(label_words)] = Field(
        "A,B,C", description="words for A, B and tie, each one token; the same as TEACHER_LABEL_WORDS"
    )
    postpre_epochs: float = Field(1.0, gt=0, description="passes over the rows")
    postpre_max_steps: int = Field(0, ge=0, description="stop after this many optimizer steps; 0: by epochs")
    postpre_subset_size: int = Field(0, ge=0, description="use this many rows only, drawn by seed; 0: all")
    postpre_lr: float = Field(1e-5, gt=0, description="peak learning rate, AdamW")
    postpre_warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of the steps")
    postpre_weight_decay: float = Field(0.01, ge=0, description="AdamW")
    postpre_maxlen: int = Field(1024, ge=16, description="tokens a sequence")
    postpre_per_device_bs: int = Field(1, ge=1, le=65536, description="rows a device and step")
    postpre_grad_accum: int = Field(64, ge=1, le=65536, description="steps summed before an update")
    postpre_lora_r: int = Field(64, ge=1, le=4096, description="rank")
    postpre_lora_alpha: int = Field(128, ge=1, description="the adapter counts alpha / rank")
    postpre_lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    postpre_quant: Literal["auto", "nf4", "none"] = Field(
        "auto", description="base weights while training: 4 bits, or 16; auto: nf4 on a GPU"
    )
    postpre_bf16: bool = Field(True, description="compute in bfloat16; frozen base weights too")
    postpre_gradient_checkpointing: bool = Field(True, description="less memory, about 30 percent more time")
    postpre_fsdp: bool = Field(True, description="several GPUs (torchrun) share 16-bit weights; 4-bit ones are copied")
    postpre_save_steps: int = Field(0, ge=0, description="checkpoint every this many steps; 0: 20 times a run")
    postpre_merge: bool = Field(True, description="also write base + adapter as one model, which step 3 starts from")
    report_to: Annotated[str, AfterValidator(trackers)] = Field(
        "none", description="experiment trackers, comma list: tensorboard, wandb, mlflow, or none"
    )

    @field_validator("run_stage")
    @classmethod
    def _families(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if names == ["all"]:
            names = list(FAMILIES)
        if not names or (unknown := [name for name in names if name not in FAMILIES]):
            raise ValueError(f"unknown family {unknown[0]!r}: use {', '.join(FAMILIES)} or all")
        return ",".join(dict.fromkeys(names))

    @property
    def data_paths(self) -> list[Path]:
        """Files to train on."""
        return [Path(part.strip()) for part in self.ut_data.split(",") if part.strip()]

    @property
    def plans(self) -> list[FamilyPlan]:
        """The chosen families."""
        out = []
        for family in self.run_stage.split(","):
            base, tokenizer = getattr(self, f"{family}_base"), getattr(self, f"{family}_tok")
            merged = self.model_save / f"post_pretrain_{family}"
            adapter = merged.with_name(f"{merged.name}_lora")
            out.append(
                FamilyPlan(
                    family, f"{family.upper()}_BASE", base, tokenizer, adapter, merged if self.postpre_merge else None
                )
            )
        return out

    def ladder(self, family: str) -> list[str]:
        """Bases to fall back to, from the setting; empty: the built-in ones."""
        given = getattr(self, f"{family}_ladder", "")
        return [part.strip() for part in given.split(",") if part.strip()]


class LoraTrainSettings(PostPretrainSettings):
    """One base model by hand: ``scripts/lora_train.py``."""

    base_model: str = Field(description="hub name or directory; required")
    tokenizer: str = Field("", description="hub name or directory, if not the base's own")
    out_dir: Path = Field(description="receives the adapter; required")
    postpre_bf16: bool = Field(
        True, validation_alias=AliasChoices("bf16", "postpre_bf16"), description="compute in bfloat16; frozen base too"
    )

    @property
    def plans(self) -> list[FamilyPlan]:
        """The one base."""
        return [FamilyPlan("model", "--base-model", self.base_model, self.tokenizer, self.out_dir, None)]
