"""Settings of the report."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.run_settings import RunSettings


class ReportSettings(RunSettings):
    """Whose report, and where it goes."""

    owned_prefixes: ClassVar[tuple[str, ...]] = ("REPORT_OUT",)

    report_out: str = Field("", description="page to write (.html); default model_save/[RUN/]report.html")

    @property
    def page(self) -> Path:
        """The page; its data go beside it, in a file of the same name that ends in ``.json``.

        Raises:
            SettingsError: it has another ending.
        """
        path = Path(self.report_out) if self.report_out else self.model_save / "report.html"
        if path.suffix != ".html":
            raise SettingsError(f"--report-out (or REPORT_OUT): {path} -> give a file name that ends in .html")
        return path

    def in_sub(self, name: str) -> Path:
        """Where this run's submission ``name`` is."""
        return self.output_dir / "sub" / f"{self.run}{'_' if self.run else ''}{name}"
