"""A report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from arena_distill.evaluation.scoreboard import TRUTH_NAME
from arena_distill.report import charts, formatting
from arena_distill.report.document import ChainRow, Cost, Report, Slices
from arena_distill.report.figures import Figure
from arena_distill.report.run_files import RunFiles
from arena_distill.runtime.stages import STAGES

TEMPLATES = Path(__file__).resolve().parent / "templates"
GENERATOR = "arena-distill report"
UNIFORM = 1.0986122886681098
"""Log loss of giving each of three classes a third: ln 3."""

_FILTERS = (
    "loss", "change", "count", "percent", "size", "duration", "rate", "small", "ends", "setting", "digest",
)  # fmt: skip
_FOLD = re.compile(r"_fold_\d+")


def render(report: Report, files: RunFiles) -> str:
    """The page.

    Args:
        report: what it says.
        files: what it was read from, to link to.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in _FILTERS}
    environment.globals |= {
        "charts": charts,
        "generator": GENERATOR,
        "uniform": UNIFORM,
        "data_file": files.page.with_suffix(".json").name,
        "sources": lambda *parts: _sources(parts, files),
        "link": files.link,
        "bands": bands,
        "chain_chart": chain_chart,
        "slice_scale": slice_scale,
        "layer_rows": layer_rows,
        "scale_of": charts.scale_of,
        "around": charts.around,
        "stage_name": stage_name,
        "by_stage": by_stage,
    }
    return environment.get_template("report.html.j2").render(report=report)


def _sources(parts: Iterable[Any], files: RunFiles) -> list[LinkGroup]:
    """Links to the files that parts of a report come from, or whose names they are."""
    names = (
        part if isinstance(part, tuple) and all(isinstance(n, str) for n in part) else files_of(part) for part in parts
    )
    return list(links([name for some in names for name in some], files))


def files_of(part: Any) -> Iterator[str]:
    """Names of the files that the figures in any part of a report come from."""
    if isinstance(part, Figure):
        yield from part.files
    elif is_dataclass(part) and not isinstance(part, type):
        for one in fields(part):
            yield from files_of(getattr(part, one.name))
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from files_of(value)
    elif isinstance(part, Iterable) and not isinstance(part, str):
        for value in part:
            yield from files_of(value)


@dataclass(frozen=True)
class LinkGroup:
    """Links to one file, or to the same file of several folds."""

    before: str
    links: tuple[tuple[str, str], ...]  # text, URL
    after: str


def links(names: Iterable[str], files: RunFiles) -> Iterator[LinkGroup]:
    """Each file once; the folds of a model together, as ``…_fold_0 1 2/manifest.json``."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_FOLD.sub("_fold_*", name), []).append(name)
    for pattern, some in groups.items():
        if len(some) == 1:
            yield LinkGroup("", ((some[0], files.link(some[0])),), "")
        else:
            before, _, after = pattern.partition("*")
            numbers = [name[len(before) : len(name) - len(after)] for name in some]
            parts = tuple((number, files.link(name)) for number, name in zip(numbers, some, strict=True))
            yield LinkGroup(before, parts, after)


# What charts need beside their figures


@dataclass(frozen=True)
class Band:
    """Rows of the chain that were scored on the same rows, so that they may be compared."""

    title: str
    rows: list[ChainRow]


def bands(chain: list[ChainRow]) -> list[Band]:
    """The steps by the rows that they were scored on; those that were not scored in bands without a title."""
    found: list[Band] = []
    key = ""
    for row in chain:
        if not found or key != (row.rows.key if row.rows else ""):
            key = row.rows.key if row.rows else ""
            found.append(Band(row.rows.label if row.rows else "", []))
        found[-1].rows.append(row)
    return found


def chain_chart(chain: list[ChainRow]) -> tuple[list[Band], charts.Scale, float]:
    """The scored steps in bands, the scale of all of them, and the largest size in bytes.

    The best possible scores are left out: they would press all others together.
    """
    shown = [row for row in chain if row.log_loss is not None and row.step != TRUTH_NAME]
    found = bands(shown)
    values = [row.log_loss.value for band in found for row in band.rows if row.log_loss is not None]
    values += [fold.value for band in found for row in band.rows for fold in row.folds]
    intervals = [row.interval.value for row in shown if row.interval is not None]
    values += [interval[end] for interval in intervals for end in ("low", "high") if interval.get(end) is not None]
    sizes = [row.size.value for row in chain if row.size is not None]
    return found, charts.scale_of(values), max(sizes, default=0)


def slice_scale(slices: list[Slices]) -> charts.Scale:
    """The scale of all slices' log losses: intervals of few rows may run out of it."""
    entries = [entry for one in slices for entry in one.slices.value]
    values = [entry["log_loss"]["value"] for entry in entries]
    sure = [entry["log_loss"] for entry in entries if not entry.get("few")]
    values += [interval[end] for interval in sure for end in ("low", "high") if interval.get(end) is not None]
    return charts.scale_of(values)


def layer_rows(layers: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """Errors of all layers by their kind (``self_attn.q_proj``), in the order of the model."""
    kinds: dict[str, list[float]] = {}
    for layer in layers:
        kind = re.sub(r"^.*?\.\d+\.", "", str(layer["module"]))
        kinds.setdefault(kind, []).append(float(layer["weight_error"]))
    return list(kinds.items())


def stage_name(stage: str) -> str:
    """What one types to run a stage."""
    return STAGES[stage].script if stage in STAGES else stage


def by_stage(costs: list[Cost]) -> list[tuple[str, list[Cost]]]:
    """Costs by stage."""
    stages: dict[str, list[Cost]] = {}
    for cost in costs:
        stages.setdefault(cost.stage, []).append(cost)
    return list(stages.items())
