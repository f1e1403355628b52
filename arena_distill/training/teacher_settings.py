"""Settings of step 3: one teacher for each family and fold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from arena_distill.data.fold_numbers import fold_numbers, folds_list
from arena_distill.runtime.run_settings import FoldedSettings
from arena_distill.runtime.stages import RESERVED_NAMES
from arena_distill.training.student_settings import trackers


def label_words(text: str) -> str:
    """Three words, comma list."""
    words = [word.strip() for word in text.split(",")]
    if len(words) != 3 or not all(words) or len(set(words)) < 3:
        raise ValueError("give three different words for A, B and tie, separated by commas")
    return ",".join(words)


_OF_LABELS_AND_LORA = ("label_words", "lora_alpha", "lora_dropout")  # an encoder has no use for them


class TeacherSettings(FoldedSettings):
    """Everything step 3 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("TEACHER_", "LLAMA_FT_", "QWEN_FT_", "GEMMA_FT_", "ENCODER_")

    llama_ft_base: str = Field("", description="base of the Llama teachers; default step 1's merged model")
    qwen_ft_base: str = Field("", description="base of the Qwen teachers; default step 1's merged model")
    gemma_ft_base: str = Field("", description="base of the Gemma teachers; default step 1's merged model")
    skip_llama: bool = Field(False, description="train no Llama teachers")
    skip_qwen: bool = Field(False, description="train no Qwen teachers")
    skip_gemma: bool = Field(True, description="train no Gemma teachers")
    llama_name: str = Field(
        "llama3-70b", pattern=r"^[\w][\w.-]*$", description="the Llama teachers are model_save/NAME_fold_K"
    )
    qwen_name: str = Field("qwen2-72b", pattern=r"^[\w][\w.-]*$", description="likewise for Qwen")
    gemma_name: str = Field("gemma2-9b", pattern=r"^[\w][\w.-]*$", description="likewise for Gemma")

    encoder_ft_base: str = Field(
        "",
        description="an encoder (BERT, DeBERTa …) as one more teacher: new head, every weight trained; default: none",
    )
    encoder_name: str = Field("encoder", pattern=r"^[\w][\w.-]*$", description="that teacher is model_save/NAME_fold_K")
    encoder_epochs: float = Field(2.0, gt=0, description="instead of TEACHER_EPOCHS")
    encoder_lr: float = Field(5e-5, gt=0, description="instead of TEACHER_LR")
    encoder_maxlen: int = Field(512, ge=16, description="instead of TEACHER_MAXLEN, tokens")
    encoder_per_device_bs: int = Field(16, ge=1, le=65536, description="instead of TEACHER_PER_DEVICE_BS")
    encoder_grad_accum: int = Field(1, ge=1, le=65536, description="instead of TEACHER_GRAD_ACCUM")

    teacher_folds: Annotated[str, AfterValidator(folds_list)] = Field(
        "all", description="which folds to train: all, or numbers such as 0,1,2"
    )
    teacher_head: Literal["label", "seq_cls"] = Field(
        "label", description="label: the LM's own output head at three label tokens; seq_cls: a new trained head"
    )
    teacher_label_words: Annotated[str, AfterValidator(label_words)] = Field(
        "A,B,C", description="words for A, B and tie, each one token of the tokenizer"
    )
    teacher_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    teacher_max_steps: int = Field(0, ge=0, description="stop after this many optimizer steps; 0: by epochs")
    teacher_subset_size: int = Field(0, ge=0, description="train on this many rows only, drawn by seed; 0: all")
    teacher_lr: float = Field(1e-5, gt=0, description="peak learning rate, AdamW")
    teacher_warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of the steps")
    teacher_weight_decay: float = Field(0.01, ge=0, description="AdamW")
    teacher_label_smoothing: float = Field(0.0, ge=0, lt=1, description="mass moved from the vote to all classes")
    teacher_maxlen: int = Field(1024, ge=16, description="tokens a sequence (prompt + both answers)")
    teacher_per_device_bs: int = Field(1, ge=1, le=65536, description="rows a device and step")
    teacher_grad_accum: int = Field(64, ge=1, le=65536, description="steps summed before an update")
    teacher_eval_tokens: int = Field(16384, ge=16, description="tokens of a held-out batch, padding included")
    teacher_lora_r: int = Field(64, ge=0, le=4096, description="rank; 0: full fine-tune (seq_cls only)")
    teacher_lora_alpha: int = Field(128, ge=1, description="the adapter counts alpha / rank")
    teacher_lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    teacher_quant: Literal["auto", "nf4", "none"] = Field(
        "auto", description="base weights while training: 4 bits, or 16; auto: nf4 for LoRA on a GPU"
    )
    teacher_bf16: bool = Field(True, description="compute in bfloat16; frozen base weights too")
    teacher_gradient_checkpointing: bool = Field(True, description="less memory, about 30 percent more time")
    teacher_swap_augment: bool = Field(False, description="train on both orders of every pair, at twice the time")
    teacher_fsdp: bool = Field(True, description="several GPUs (torchrun) share 16-bit weights; 4-bit ones are copied")
    teacher_save_steps: int = Field(0, ge=0, description="checkpoint every this many steps; 0: 20 times a run")
    teacher_merge: Literal["auto", "1", "0"] = Field(
        "auto", description="also write base + adapter as one model; auto: for 16-bit bases, if the disk has ample room"
    )
    teacher_num_workers: int = Field(0, ge=0, le=256, description="data loader processes")
    report_to: Annotated[str, AfterValidator(trackers)] = Field(
        "none", description="experiment trackers, comma list: tensorboard, wandb, mlflow, or none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TeacherSettings:
        if not self.teacher_lora_r and self.teacher_head == "label":
            raise ValueError(
                "TEACHER_LORA_R=0 (full fine-tune) needs TEACHER_HEAD=seq_cls: the label head stays frozen"
            )
        if not self.teacher_lora_r and self.teacher_quant == "nf4":
            raise ValueError("TEACHER_LORA_R=0 (full fine-tune) cannot train 4-bit weights: set TEACHER_QUANT=none")
        if self.skip_llama and self.skip_qwen and self.skip_gemma and not self.encoder_ft_base:
            raise ValueError("SKIP_LLAMA, SKIP_QWEN and SKIP_GEMMA leave no teacher to train")
        if taken := set(RESERVED_NAMES) & self.families.keys():
            raise ValueError(f"no teacher can be called {taken.pop()}: step 4's table has a line of that name")
        if len({self.llama_name, self.qwen_name, self.gemma_name, self.encoder_name}) < 4:
            raise ValueError("LLAMA_NAME, QWEN_NAME, GEMMA_NAME and ENCODER_NAME must differ: each names directories")
        return self

    @property
    def families(self) -> dict[str, tuple[str, str]]:
        """Teacher name -> the setting that gives its base, and the base."""
        every = {
            "llama": (self.skip_llama, self.llama_name, self.llama_ft_base),
            "qwen": (self.skip_qwen, self.qwen_name, self.qwen_ft_base),
            "gemma": (self.skip_gemma, self.gemma_name, self.gemma_ft_base),
            "encoder": (not self.encoder_ft_base, self.encoder_name, self.encoder_ft_base),
        }
        return {
            name: (setting := f"{family.upper()}_FT_BASE", base or str(self.default_base(setting)))
            for family, (skip, name, base) in every.items()
            if not skip
        }

    def length_setting(self, name: str) -> str:
        """What says how long the texts of one teacher may be, for messages."""
        family = "encoder" if self.encoder_ft_base and name == self.encoder_name else "teacher"
        return f"--{family}-maxlen (or {family.upper()}_MAXLEN)"

    def of_family(self, name: str) -> TeacherSettings:
        """The settings as they hold for one teacher: the encoder has its own for some, and neither LoRA nor labels."""
        if not self.encoder_ft_base or name != self.encoder_name:
            return self
        own = ("epochs", "lr", "maxlen", "per_device_bs", "grad_accum")
        update = {f"teacher_{key}": getattr(self, f"encoder_{key}") for key in own}
        return self.model_copy(
            update=update
            | {"teacher_head": "seq_cls", "teacher_lora_r": 0, "teacher_quant": "none"}
            | {f"teacher_{key}": type(self).model_fields[f"teacher_{key}"].default for key in _OF_LABELS_AND_LORA}
        )

    def default_base(self, setting: str) -> Path:
        """What step 1 wrote for the family of a ``…_FT_BASE`` setting."""
        return self.model_save / f"post_pretrain_{setting.partition('_')[0].lower()}"

    @property
    def fold_numbers(self) -> list[int]:
        """Folds to train."""
        return fold_numbers(self.teacher_folds, self.n_folds)

    def merged_dir(self, name: str, fold: int) -> Path:
        """The teacher as one model."""
        return self.model_save / f"{name}_fold_{fold}"

    def adapter_dir(self, name: str, fold: int) -> Path:
        """The teacher as an adapter."""
        return self.model_save / f"{name}_fold_{fold}_lora"
