"""Training curves, from the ``training_log.json`` that every training leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arena_distill.report.document import Curve, CurveSet
from arena_distill.report.figures import Figure, derive
from arena_distill.report.inventory import Inventory, Output
from arena_distill.report.run_files import JsonFile, RunFiles

TRAINING_LOG = "training_log.json"
_DISTILLED = (
    "The training loss mixes votes with the teachers' softened labels: it can't be compared with the log loss, "
    "which is of rows that choose the checkpoint."
)
_VOTES = "The log loss is of rows that choose the checkpoint."


def curves(found: Inventory, files: RunFiles) -> list[CurveSet]:
    """One set for each model that was trained, students first."""
    sets = []
    for name, students in (*found.students.items(), *found.small_students.items()):
        distilled = any(one.manifest.get("teachers") for one in students)
        sets.append(
            _curve_set(
                f"Students {name.removeprefix('distilled_')}", _DISTILLED if distilled else _VOTES, students, files
            )
        )
    for name in dict.fromkeys(str(one.manifest.get("family")) for one in found.teachers):
        teachers = [one for one in found.teachers if one.manifest.get("family") == name]
        sets.append(_curve_set(f"Teacher {name}", "", teachers, files))
    for output in found.post_pretrained:
        title = f"Post-pretraining {output.manifest.get('family') or output.path.name}"
        sets.append(_curve_set(title, "", [output], files))
    return [one for one in sets if one is not None]


def _curve_set(title: str, note: str, outputs: Sequence[Output], files: RunFiles) -> CurveSet | None:
    found = []
    for output in outputs:
        log = training_log(output, files)
        if log is not None:
            label = "" if output.fold is None else f"fold {output.fold}"
            whole = Figure(log.content, f"{log.name}#")
            loss, evaluation = (derive(f"{key} over steps", whole) for key in ("loss", "eval_log_loss"))
            if loss.value or evaluation.value:
                found.append(Curve(label, loss, evaluation))
    return CurveSet(title, note, tuple(found)) if found else None


def training_log(output: Output, files: RunFiles) -> JsonFile | None:
    """The log of a training, if it kept one.

    Raises:
        InputError: it is broken.
    """
    log = files.json(output.file(TRAINING_LOG))
    if log is not None and not _is_log(log):
        log.refuse("is no list of steps")
    return log


def _is_log(log: JsonFile) -> bool:
    entries = log.content
    return isinstance(entries, list) and all(isinstance(one, dict) and "step" in one for one in entries)


def training_speeds(outputs: Sequence[Output], files: RunFiles) -> Iterator[Figure]:
    """Sequences a second of each training that says so."""
    for output in outputs:
        log = training_log(output, files)
        for k, entry in enumerate(log.content if log else []):
            if "train_samples_per_second" in entry and log is not None:
                yield log.needed_number(k, "train_samples_per_second")
