"""Settings of step 7: which model to quantize, how, on what, and how much it may lose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from arena_distill.data.find_file import find_file
from arena_distill.evaluation.eval_rows import EvalRowsSettings
from arena_distill.inference.tta_lengths import LONGEST


def _bits(bits: int) -> int:
    if bits not in (4, 8):
        raise ValueError("must be 4 or 8")
    return bits


def _group_size(size: int) -> int:
    if size != -1 and not (16 <= size <= 1024 and size & (size - 1) == 0):
        raise ValueError("must be a power of two from 16 to 1024, or -1 for one scale a row")
    return size


class QuantizeSettings(EvalRowsSettings):
    """Everything step 7 can be told."""

    model_config = SettingsConfigDict(
        # The short flags are what users type; as variables BITS or MAX_LENGTH could be anybody's.
        cli_shortcuts={
            "quant-bits": "bits",
            "quant-group-size": "group-size",
            "quant-max-calib-samples": "max-calib-samples",
            "quant-max-length": "max-length",
        },
    )
    owned_prefixes: ClassVar[tuple[str, ...]] = ("QUANT_", "CALIB_CSV", "TOKENIZER_DIR")

    model_dir: str = Field("", description="plain classifier to quantize; default model_save/[RUN/]final_merged_model")
    out_dir: str = Field("", description="receives it; default model_save/[RUN/]final_quantized_model")
    tokenizer_dir: str = Field("", description="tokenizer files to use instead of those in MODEL_DIR")
    calib_csv: str = Field(
        "",
        description="texts to calibrate GPTQ on (.csv, .parquet, .jsonl); default: the training votes",
    )
    train_csv: str = Field("", description="training votes; default data/[lmsys-chatbot-arena/]train.csv")

    quant_bits: Annotated[int, AfterValidator(_bits)] = Field(8, description="of a weight: 8, or 4 with GPTQ")
    quant_group_size: Annotated[int, AfterValidator(_group_size)] = Field(
        128, description="GPTQ: input features that share a scale; less where a layer is narrower, -1: all"
    )
    quant_max_calib_samples: int = Field(1024, ge=16, le=65536, description="GPTQ: calibration texts")
    quant_max_length: int = Field(
        0, ge=0, le=LONGEST, description="length limit, tokens; 0: what the model was trained with"
    )
    quant_method: Literal["auto", "gptq", "int8", "torchao-int8", "bitsandbytes-int8"] = Field(
        "auto",
        description="auto: gptq where GPTQModel knows the model, else int8 (bitsandbytes on a GPU, else torchao)",
    )
    quant_max_logloss_increase: float = Field(
        0.005, ge=0, description="nats; above it nothing is published. Without votes it bounds the mean KL divergence"
    )
    quant_min_agreement: float = Field(
        0.97, ge=0, le=1, description="share of rows that must keep their most probable class"
    )
    quant_eval_rows: int = Field(1000, ge=0, description="at most so many rows to compare on, drawn by SEED; 0: all")
    quant_batch_tokens: int = Field(16384, ge=16, description="tokens of a batch in the comparison, with padding")
    quant_device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    quant_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what the comparison computes in; auto: bfloat16 on a GPU, float32 on a CPU"
    )

    @model_validator(mode="after")
    def _consistent(self) -> QuantizeSettings:
        if self.quant_bits == 4 and self.quant_method not in ("auto", "gptq"):
            raise ValueError(f"QUANT_METHOD={self.quant_method} has 8 bits only: leave out --bits 4, or use gptq")
        return self

    @property
    def model_path(self) -> Path:
        """The model to quantize."""
        return Path(self.model_dir) if self.model_dir else self.model_save / "final_merged_model"

    @property
    def out_path(self) -> Path:
        """Where the quantized model goes."""
        return Path(self.out_dir) if self.out_dir else self.model_save / "final_quantized_model"

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer is."""
        return Path(self.tokenizer_dir) if self.tokenizer_dir else self.model_path

    @property
    def calibration_file(self) -> Path:
        """Texts to calibrate on.

        Raises:
            InputError: none is given, and none is in the default places.
        """
        return find_file(self.calib_csv or self.train_csv, "train", "--calib-csv (or CALIB_CSV)")
