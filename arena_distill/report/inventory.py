"""Which outputs of a run are there, by the stage that made them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arena_distill.evaluation.calibration_file import CALIBRATION_FILE
from arena_distill.evaluation.evaluation_file import read_evaluation
from arena_distill.report.figures import Figure, derive
from arena_distill.report.report_settings import ReportSettings
from arena_distill.report.run_files import JsonFile, RunFiles
from arena_distill.runtime.artifacts import MANIFEST, fingerprint
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import (
    DISTILL_STUDENT,
    INFER_TEACHER_LOGITS,
    LORA_ENSEMBLE,
    MAKE_FOLDS,
    POST_PRETRAIN,
    QUANTIZE,
    TRAIN_TEACHERS,
)

MERGED_COPY, SMALL_STUDENT, TINY_MODELS = "lora-merge", "student-train", "make_tiny_models"
QUANTIZATION_REPORT = "quantization_report.json"
_NOT_WEIGHTS = ("classifier_head.safetensors", "probe.safetensors")  # copies of what is in the others, and a check
_FOLD = re.compile(r"_fold_(\d+)(?=_lora$|$)")


@dataclass(frozen=True)
class Output:
    """A finished output: a directory, or a file with its manifest beside it."""

    path: Path
    manifest: JsonFile

    @property
    def stage(self) -> str:
        """What made it."""
        return str(self.manifest.get("stage"))

    @property
    def fold(self) -> int | None:
        """Of a fold's output."""
        found = self.manifest.get("fold")
        return found if type(found) is int else None

    @property
    def group(self) -> str:
        """Its name without the fold."""
        name = _FOLD.sub("", self.path.stem if self.path.suffix == ".csv" else self.path.name)
        return f"{name}.csv" if self.path.suffix == ".csv" else name

    @property
    def identity(self) -> str:
        """What tells its files from those of another, as later stages record it."""
        return fingerprint({}, self.manifest.get("outputs") or {})

    def file(self, name: str) -> Path:
        """A file in it."""
        return self.path / name

    def weights(self) -> Figure | None:
        """Bytes of its weights; None where there are none."""
        names = [name for name in self.manifest.get("output_bytes") or {} if is_weights(name)]
        return derive("sum", *(self.manifest.needed_number("output_bytes", name) for name in names)) if names else None

    def size(self) -> Figure | None:
        """Bytes of all its files (checkpoints, which lie deeper, are not among them)."""
        names = list(self.manifest.get("output_bytes") or {})
        return derive("sum", *(self.manifest.needed_number("output_bytes", name) for name in names)) if names else None


def is_weights(name: str) -> bool:
    """Whether a file of a model's directory holds its weights."""
    return name.endswith(".safetensors") and name not in _NOT_WEIGHTS


@dataclass
class Inventory:
    """All that was found; lists are in the order of names and folds."""

    post_pretrained: list[Output] = field(default_factory=list)
    merged_copies: list[Output] = field(default_factory=list)
    folds: Output | None = None
    teachers: list[Output] = field(default_factory=list)
    teacher_logits: list[Output] = field(default_factory=list)
    oof_table: Output | None = None
    labels_elsewhere: bool = False  # the table is of another run
    students: dict[str, list[Output]] = field(default_factory=dict)  # of step 5, by name
    small_students: dict[str, list[Output]] = field(default_factory=dict)  # of main.py, by name
    calibrations: dict[Path, JsonFile] = field(default_factory=dict)  # by the student's directory
    averaged: Output | None = None
    merged: Output | None = None
    quantized: Output | None = None
    quantization: JsonFile | None = None
    student_submissions: list[Output] = field(default_factory=list)
    submission: Output | None = None
    ensemble: Output | None = None
    evaluation: JsonFile | None = None
    evaluated: Output | None = None

    def outputs(self) -> list[Output]:
        """Everything of this run with a manifest, in the order in which stages run."""
        single = (self.averaged, self.merged, self.quantized)
        last = (self.submission, self.ensemble, self.evaluated)
        several: Iterable[Iterable[Output | None]] = (
            self.post_pretrained,
            (self.folds,),
            self.teachers,
            self.merged_copies,
            self.teacher_logits,
            (None if self.labels_elsewhere else self.oof_table,),
            *self.students.values(),
            *self.small_students.values(),
            single,
            self.student_submissions,
            last,
        )
        return [output for group in several for output in group if output is not None]

    @property
    def final_students(self) -> list[Output]:
        """Of step 5's students those that were averaged; where none were, those of the name with most folds."""
        if self.averaged is not None:
            recorded = self.averaged.manifest.get("inputs") or {}
            for students in self.students.values():
                if any(recorded.get(f"fold_{one.fold}") == one.identity for one in students):
                    return students
        return max(self.students.values(), key=len, default=[])

    def merged_copy(self, teacher: Output) -> Output | None:
        """The teacher as one model, if it was merged."""
        names = {teacher.path.name.removesuffix("_lora"), teacher.path.name}
        return next((one for one in self.merged_copies if one.path.name in names), None)


def take_inventory(settings: ReportSettings, files: RunFiles) -> Inventory:
    """Find the outputs of a run.

    Args:
        settings: which run.
        files: reads them.

    Raises:
        InputError: a manifest or another file is broken, or there is nothing at all.
    """
    found = Inventory()
    for output in _directories(settings.model_save, files):
        _sort_in(found, output)
    for student in (one for some in found.small_students.values() for one in some):
        if (calibration := files.json(student.file(CALIBRATION_FILE))) is not None:
            found.calibrations[student.path] = calibration
    _teacher_labels(found, settings, files)
    _folds(found, settings, files)
    if found.quantized is not None:
        found.quantization = files.json(found.quantized.file(QUANTIZATION_REPORT))
    _submissions(found, settings, files)
    if not any(output.stage != MAKE_FOLDS.name for output in found.outputs()) and found.evaluation is None:
        raise InputError(f"{settings.model_save}: nothing of {_named(settings.run)} is there -> {_others(settings)}")
    return found


def _directories(models: Path, files: RunFiles) -> Iterator[Output]:
    for path in sorted(models.iterdir(), key=_by_fold) if models.is_dir() else []:
        if path.is_dir() and not path.name.startswith("."):
            manifest = files.manifest(path / MANIFEST) if (path / MANIFEST).is_file() else None
            if manifest is not None:
                yield Output(path, manifest)


def _by_fold(path: Path) -> tuple[str, int]:
    match = _FOLD.search(path.name)
    return _FOLD.sub("", path.name), int(match[1]) if match else -1


def _sort_in(found: Inventory, output: Output) -> None:
    lists = {
        POST_PRETRAIN.name: found.post_pretrained,
        TRAIN_TEACHERS.name: found.teachers,
        MERGED_COPY: found.merged_copies,
    }
    groups = {DISTILL_STUDENT.name: found.students, SMALL_STUDENT: found.small_students}
    if output.stage in lists:
        lists[output.stage].append(output)
    elif output.stage in groups:
        groups[output.stage].setdefault(output.group, []).append(output)
    elif output.stage == LORA_ENSEMBLE.name and output.manifest.get("conversion") is not None:
        found.merged = output
    elif output.stage == LORA_ENSEMBLE.name:
        found.averaged = output
    elif output.stage == QUANTIZE.name:
        found.quantized = output


def _teacher_labels(found: Inventory, settings: ReportSettings, files: RunFiles) -> None:
    """Step 4's outputs of this run, or those of another that its students learned from."""
    directory = settings.model_save / "teacher_logits"
    found.teacher_logits = [one for one in _directories(directory, files) if one.stage == INFER_TEACHER_LOGITS.name]
    students = [one for some in found.students.values() for one in some]
    named = {str(one.manifest.get("all_settings", "infer_oof_table") or "") for one in students} - {""}
    distilled = students + [
        one for some in found.small_students.values() for one in some if one.manifest.get("teachers")
    ]
    elsewhere = [settings.output_dir / "model_save" / "teacher_logits" / "oof_probs.parquet"] if distilled else []
    for table in (directory / "oof_probs.parquet", *map(Path, sorted(named)), *elsewhere):
        if found.oof_table is None:
            found.oof_table = _file_output(table, files)
            found.labels_elsewhere = found.oof_table is not None and table.parent != directory


def _folds(found: Inventory, settings: ReportSettings, files: RunFiles) -> None:
    name = f"fold_data_{settings.run}" if settings.run else "fold_data"
    given = {
        str(one.manifest.get("all_settings", "folds_out_dir") or "") for some in found.students.values() for one in some
    }
    for directory in (settings.output_dir / "data" / name, *map(Path, sorted(given - {""}))):
        manifest = files.manifest(directory / MANIFEST) if found.folds is None else None
        if manifest is not None and manifest.get("stage") == MAKE_FOLDS.name:
            found.folds = Output(directory, manifest)


def _submissions(found: Inventory, settings: ReportSettings, files: RunFiles) -> None:
    pattern = re.compile(re.escape(settings.in_sub("student_submission").name) + r"(_fold_\d+)?")
    directory = settings.output_dir / "sub"
    tables = sorted(directory.glob("*student_submission*.csv"), key=lambda path: _by_fold(path.with_suffix("")))
    mine = (_file_output(table, files) for table in tables if pattern.fullmatch(table.stem))
    found.student_submissions = [output for output in mine if output is not None]
    found.submission = _file_output(settings.in_sub("final_submission.csv"), files)
    found.ensemble = _file_output(settings.in_sub("final_ensemble.csv"), files)
    path = settings.in_sub("evaluation.json")
    if read_evaluation(path) is not None:  # refuses one of another schema
        found.evaluation, found.evaluated = files.json(path), _file_output(path, files)


def _file_output(path: Path, files: RunFiles) -> Output | None:
    manifest = files.manifest(path.with_suffix(".manifest.json"))
    return None if manifest is None else Output(path, manifest)


def _named(run: str) -> str:
    return f"run {run!r}" if run else "a run without a name"


def _others(settings: ReportSettings) -> str:
    """What to do: the runs that are there, by name."""
    models = settings.output_dir / "model_save"
    runs = (
        [path.name for path in sorted(models.iterdir()) if any(path.glob("*/manifest.json"))] if models.is_dir() else []
    )
    runs = [name for name in runs if name not in ("teacher_logits", "tiny")]
    known = (
        f"give another with --run: {', '.join(runs)}" if runs else "run a stage first, such as step5_distill_student.sh"
    )
    return f"{known} (or correct --output-dir)"


def weights_sha256(manifest: JsonFile) -> Any:
    """What ``calibration_file.weights_sha256`` says of a directory, by its manifest alone."""
    outputs = manifest.get("outputs") or {}
    return "+".join(outputs[name] for name in sorted(outputs) if name.endswith(".safetensors"))
