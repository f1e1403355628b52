"""Settings of step 8: which student predicts which rows, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from arena_distill.evaluation.eval_rows import EvalRowsSettings
from arena_distill.inference.tta_lengths import LONGEST, lengths_of, lengths_text
from arena_distill.runtime.errors import InputError, SettingsError

QUANTIZED, MERGED = "final_quantized_model", "final_merged_model"


class PredictSettings(EvalRowsSettings):
    """Everything step 8 can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("PREDICT_", "TTA_")
    default_models: ClassVar[tuple[str, ...]] = (QUANTIZED, MERGED)

    model_dir: str = Field(
        "",
        description="student: any directory that steps 5 to 7 or main.py wrote; default model_save/[RUN/]final_*_model",
    )
    out: str = Field("", description="submission; default sub/[RUN_]final_submission.csv")
    head_path: str = Field(
        "", description="exported head (.pt, .safetensors) that the student must have; a foreign one is refused"
    )
    classifier_from_dir: str = Field(
        "", description="student whose head the student must have, instead of an exported one"
    )
    tta_lengths: Annotated[str, AfterValidator(lengths_text)] = Field(
        "", description="length limits to average over, tokens, such as 512,1024; default: the student's own"
    )
    tta_swap: bool = Field(True, description="average over both orders of the answers")
    max_length: int = Field(0, ge=0, le=LONGEST, description="bound on every length limit, tokens; 0: none")
    batch_size: int = Field(32, ge=1, le=65536, description="rows of the longest length limit that a batch may hold")
    predict_batch_tokens: int = Field(
        0, ge=0, description="instead: tokens of a batch, padding included; halved whenever memory runs out"
    )
    predict_bf16: bool | None = Field(None, description="compute in bfloat16; default: on a GPU that can, not on a CPU")
    temperature_json: str = Field("", description="calibration; default MODEL_DIR/calibration.json")

    @property
    def submission(self) -> Path:
        """Where the probabilities go.

        Raises:
            SettingsError: no name of a CSV file.
        """
        name = f"{self.run}_final_submission.csv" if self.run else "final_submission.csv"
        path = Path(self.out) if self.out else self.output_dir / "sub" / name
        if path.suffix != ".csv":
            raise SettingsError(f"--out (or OUT): {path} -> give a file name that ends in .csv")
        return path

    @property
    def model(self) -> Path:
        """The student: as given, or the last of this run's conversions that is there.

        Raises:
            InputError: there is none.
        """
        if self.model_dir:
            return Path(self.model_dir)
        places = [self.model_save / name for name in self.default_models]
        found = next(filter(Path.is_dir, places), None)
        if found is None:
            raise InputError(
                f"{places[0]}: no such model -> run step 6 (and step 7) first, or name a student in MODEL_DIR"
            )
        return found

    def lengths(self, trained_with: int | None, model: Path) -> list[int]:
        """Length limits of the views, tokens, each once.

        Args:
            trained_with: the student's own limit, or None where that is unknown.
            model: the student.

        Raises:
            SettingsError: no limit is given, and the student has none of its own.
        """
        wanted = lengths_of(self.tta_lengths) or ([trained_with] if trained_with else [])
        if not wanted:
            raise SettingsError(f"{model}: its manifest has no max_length -> give --tta-lengths (or TTA_LENGTHS)")
        return list(dict.fromkeys(min(length, self.max_length or length) for length in wanted))


class UnquantizedSettings(PredictSettings):
    """The same for students whose weights are whole."""

    default_models: ClassVar[tuple[str, ...]] = (MERGED,)
