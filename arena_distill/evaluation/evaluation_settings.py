"""Settings of step 9's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from arena_distill.data.find_file import find_file
from arena_distill.evaluation.eval_rows import NONE, EvalRowsSettings
from arena_distill.runtime.errors import InputError

MIN_RESAMPLES = 100
LOGITS_SUFFIX = ".logits.parquet"


class EvaluationSettings(EvalRowsSettings):
    """What to score, on which rows, and where to write it."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("EVALUATION_",)

    submission: str = Field("", description="probabilities to score; default sub/[RUN_]final_ensemble.csv")
    train_csv: str = Field(
        "", description="votes that the baselines are fitted on, or none; default data/[lmsys-chatbot-arena/]train.csv"
    )
    evaluation_logits: str = Field(
        "",
        description="logits of every view beside the submission that step 8 made of them, or none; "
        "default sub/[RUN_]final_submission.logits.parquet, if that is what is scored or a member of it",
    )
    evaluation_out: str = Field("", description="JSON file to write; default sub/[RUN_]evaluation.json")
    evaluation_resamples: int = Field(
        1000, ge=MIN_RESAMPLES, description="bootstrap resamples of the prompts, for 95 % intervals"
    )

    def in_sub(self, name: str) -> Path:
        """Where this run's file ``name`` is."""
        return self.output_dir / "sub" / f"{self.run}{'_' if self.run else ''}{name}"

    @property
    def submission_file(self) -> Path:
        """What to score."""
        return Path(self.submission) if self.submission else self.in_sub("final_ensemble.csv")

    @property
    def out_file(self) -> Path:
        """What to write."""
        return Path(self.evaluation_out) if self.evaluation_out else self.in_sub("evaluation.json")

    @property
    def train_file(self) -> Path | None:
        """Training votes, if they are at hand.

        Raises:
            InputError: those that were given are not.
        """
        if self.train_csv == NONE:
            return None
        if self.train_csv and not Path(self.train_csv).is_file():
            raise InputError(f"TRAIN_CSV={self.train_csv}: no such file -> check the path, or say none")
        try:
            return find_file(self.train_csv, "train", "--train-csv (or TRAIN_CSV)")
        except InputError:  # the baselines are left out then
            return None

    @property
    def default_logits(self) -> Path:
        """Where step 8 leaves the logits of this run."""
        return self.in_sub(f"final_submission{LOGITS_SUFFIX}")
