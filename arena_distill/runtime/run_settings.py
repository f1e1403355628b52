"""Settings that every stage shares: where a run's outputs go, its seed, and whether to do finished work again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from arena_distill.runtime.settings import StageSettings

_TAKEN = ("pipeline", "tiny", "teacher_logits")  # directories of the run without a name


def _run_name(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"{name!r}: a name has letters, digits, '_', '.' and '-', and begins with none of the last two"
        )
    if name in _TAKEN:
        raise ValueError(f"model_save/{name} is where runs without a name keep something else: choose another name")
    return name


class RunSettings(StageSettings):
    """One run: ``RUN=name`` keeps its outputs apart from those of every other."""

    output_dir: Path = Field(Path(), description="data/, model_save/ and sub/ are made here")
    run: Annotated[str, AfterValidator(_run_name)] = Field(
        "", description="run name: outputs go to model_save/RUN/ and sub/RUN_*"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="of splits and folds, shuffling, initialisation and dropout")
    force: bool = Field(False, description="do it again even if an up-to-date output is there")

    @property
    def model_save(self) -> Path:
        """Where this run's models are."""
        return self.output_dir / "model_save" / self.run

    def dump(self) -> dict[str, Any]:
        """All settings as plain values, for manifests."""
        return self.model_dump(mode="json")


class FoldedSettings(RunSettings):
    """A run over folds of one base file."""

    train_csv: str = Field(
        "", description="training votes (.csv, .parquet, .jsonl); default data/[lmsys-chatbot-arena/]train.csv"
    )
    extra_data: str = Field(
        "", description="extra training files, comma list, or none; only ever in train parts of folds"
    )
    n_folds: int = Field(5, ge=2, le=100, description="parts that the base rows are divided into")
    folds_json: str = Field(
        "", description="which fold holds out which row; default data/processed_data/[RUN/]folds_N_seedS.json"
    )

    @property
    def folds_path(self) -> Path:
        """The folds file."""
        if self.folds_json:
            return Path(self.folds_json)
        return self.output_dir / "data" / "processed_data" / self.run / f"folds_{self.n_folds}_seed{self.seed}.json"

    @property
    def extra_paths(self) -> list[Path]:
        """Extra training files."""
        parts = [part.strip() for part in self.extra_data.split(",")]
        return [Path(part) for part in parts if part not in ("", "none")]
