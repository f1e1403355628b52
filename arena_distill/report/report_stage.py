"""The report of a run: collected, rendered, and written where it isn't there already."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from arena_distill.report.collect import collect
from arena_distill.report.document import SCHEMA_VERSION, Report, as_json
from arena_distill.report.render import GENERATOR, render
from arena_distill.report.report_settings import ReportSettings
from arena_distill.report.run_files import RunFiles
from arena_distill.runtime.artifacts import locked, require_writable, write_atomically
from arena_distill.runtime.errors import InputError


def write_report(settings: ReportSettings) -> None:
    """Write ``report.html``, and beside it ``report.json`` with every number and where it comes from.

    The same files make the same bytes, so that a report which says what they say is up to date.

    Raises:
        InputError: a file of the run is broken, there is nothing of it, or something else is in the report's place.
    """
    page, data = settings.page, settings.page.with_suffix(".json")
    _refuse_overwriting(page, data)
    files = RunFiles(settings.output_dir, page)
    report = collect(settings, files)
    contents = {page: render(report, files), data: _as_text(report, files)}
    require_writable(page)
    with locked(page):
        fresh = settings.force or any(_differs(path, content) for path, content in contents.items())
        for path, content in contents.items() if fresh else ():
            write_atomically(path, content)
    for concern in report.warnings:
        print(f"warning: {concern.text}")
    print(f"{page}: {f'{len(contents[page]) / 1e3:,.0f} kB written' if fresh else 'up to date'}")


def _as_text(report: Report, files: RunFiles) -> str:
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "generator": GENERATOR,
        # Where the names of files lead from, seen from this file.
        "files_are_relative_to": Path(
            os.path.relpath(files.output_dir.resolve(), files.page.parent.resolve())
        ).as_posix(),
        **as_json(report),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _differs(path: Path, content: str) -> bool:
    return not path.is_file() or path.read_bytes() != content.encode("utf-8")


def _refuse_overwriting(page: Path, data: Path) -> None:
    for path in (page, data):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as stream:
            ours = GENERATOR in stream.read(1000)
        if not ours:
            raise InputError(f"{path}: is no report, and would be overwritten -> choose another --report-out")
