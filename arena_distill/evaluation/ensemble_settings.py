"""Settings of step 9's ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from arena_distill.runtime.run_settings import RunSettings


class EnsembleSettings(RunSettings):
    """Whose submissions become one, and how much each of them counts."""

    model_config = SettingsConfigDict(
        cli_shortcuts={f"ensemble-{name}": name for name in ("weights", "space", "student")},
    )
    owned_prefixes: ClassVar[tuple[str, ...]] = ("ENSEMBLE_",)

    test_csv: str = Field("", description="its ids and order; default: those of the first submission")
    use_weighted: bool = Field(False, description="the folds count by log loss on their held-out rows; else equally")
    ensemble_weights: Literal["", "auto", "equal", "inverse", "optimal"] = Field(
        "", description="how the folds count: equal, inverse (of their log loss); default: as USE_WEIGHTED says"
    )
    ensemble_space: Literal["mean", "log"] = Field("mean", description="average probabilities or their logarithms")
    ensemble_student: str = Field("student_distilbert", description="the folds are model_save/[RUN/]NAME_fold_K")

    @property
    def test_file(self) -> Path | None:
        """Whose rows every submission must have; None: those of the first."""
        return Path(self.test_csv) if self.test_csv else None

    @property
    def weights(self) -> Literal["auto", "equal", "inverse", "optimal"]:
        """How the folds count."""
        return self.ensemble_weights or ("auto" if self.use_weighted else "equal")

    def in_sub(self, name: str) -> Path:
        """Where this run's submission ``name`` is."""
        return self.output_dir / "sub" / f"{self.run}{'_' if self.run else ''}{name}"
