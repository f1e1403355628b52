"""What each stage cost: time, throughput and disk, summed over folds, from the manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from arena_distill.report.curves import training_speeds
from arena_distill.report.document import Cost
from arena_distill.report.figures import Figure, derive
from arena_distill.report.inventory import MERGED_COPY, SMALL_STUDENT, Inventory, Output
from arena_distill.report.run_files import RunFiles
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    EVAL,
    INFER_TTA,
    POST_PRETRAIN,
    STAGES,
    TRAIN_TEACHERS,
)

_TRAININGS = (POST_PRETRAIN.name, TRAIN_TEACHERS.name, DISTILL_STUDENT.name, SMALL_STUDENT)
_OTHER_STAGES = {SMALL_STUDENT: "main.py student-train", "student-infer": "main.py student-infer"}


def costs(found: Inventory, files: RunFiles) -> tuple[list[Cost], Figure | None]:
    """A line for every stage and model, and the seconds of all of them together."""
    groups: dict[tuple[str, str], list[Output]] = {}
    for output in found.outputs():
        if output.manifest.number("wall_seconds") is not None:
            groups.setdefault((_stage(found, output), _what(output)), []).append(output)
    order = [*STAGES, *_OTHER_STAGES.values()]
    lines = [
        _cost(stage, what, outputs, files)
        for (stage, what), outputs in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]
    if not lines:
        return [], None
    total = derive("sum", *(line.seconds for line in lines))
    return [replace(line, share=derive("share", line.seconds, total)) for line in lines], total


def _stage(found: Inventory, output: Output) -> str:
    if output.stage == MERGED_COPY:
        return (POST_PRETRAIN if output.manifest.get("verified", POST_PRETRAIN.name) else TRAIN_TEACHERS).name
    if output in (found.ensemble, found.evaluated):
        return EVAL.name
    return output.stage if output.stage in STAGES else _OTHER_STAGES.get(output.stage, EVAL.name)


def _what(output: Output) -> str:
    if output.stage == MERGED_COPY:
        return f"{output.group}, merged"
    if output.stage in (INFER_TTA.name, EVAL.name) or output.path.is_file():
        return output.group
    family = output.manifest.get("family")
    return str(family) if family and output.stage != POST_PRETRAIN.name else output.group


def _cost(stage: str, what: str, outputs: Sequence[Output], files: RunFiles) -> Cost:
    sizes = [size for output in outputs if (size := output.size()) is not None]
    speed, unit = next(_speeds(outputs, files), (None, ""))
    return Cost(
        stage,
        what,
        len(outputs),
        derive("sum", *(_machine_seconds(output) for output in outputs)),
        None,
        speed,
        unit,
        derive("sum", *sizes) if sizes else None,
    )


def _machine_seconds(output: Output) -> Figure:
    """Wall seconds, times processes (each has a device of its own)."""
    seconds, processes = output.manifest.needed_number("wall_seconds"), output.manifest.number("processes")
    return seconds if processes is None or processes.value == 1 else derive("product", seconds, processes)


def _speeds(outputs: Sequence[Output], files: RunFiles) -> Iterator[tuple[Figure, str]]:
    if outputs[0].stage in _TRAININGS:
        speeds = list(training_speeds(outputs, files))
        if speeds:
            yield derive("mean", *speeds), "seq/s"
    measured = outputs[0].manifest.number("speed", "rows_per_second")
    if measured is not None:
        yield measured, "rows/s"
    held_out = [output.manifest.number("rows", "held_out") for output in outputs]
    rows = [figure for figure in held_out if figure is not None]
    if len(rows) == len(outputs) and outputs[0].manifest.get("sequences") is not None:
        yield derive("quotient of sums", *rows, *(o.manifest.needed_number("wall_seconds") for o in outputs)), "rows/s"
