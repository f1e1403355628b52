"""Settings of step 2, which makes the folds, and of what reads its files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from arena_distill.runtime.run_settings import FoldedSettings


class FoldFilesSettings(FoldedSettings):
    """A run that writes or reads ``fold_K_{train,val}.csv``."""

    folds_out_dir: str = Field("", description="the fold files; default data/fold_data[_RUN]")

    @property
    def fold_data(self) -> Path:
        """Directory of the fold files. Beside that of another run, never inside: a directory is replaced whole."""
        return Path(self.folds_out_dir) if self.folds_out_dir else self.output_dir / "data" / self._named("fold_data")

    def _named(self, name: str) -> str:
        return f"{name}_{self.run}" if self.run else name


class FoldSettings(FoldFilesSettings):
    """What ``step2_make_folds.sh`` can be told."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("FOLDS_",)

    scratch_base: str = Field(
        "", description="fast disk that gets a copy as SCRATCH_BASE/folds[_RUN]; default: no copy"
    )

    @property
    def scratch_folds(self) -> Path | None:
        """Where the copy on scratch goes, if there is to be one."""
        return Path(self.scratch_base) / self._named("folds") if self.scratch_base else None
