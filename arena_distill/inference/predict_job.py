"""One prediction of step 8, looked at before any model is loaded. Imports no torch."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.data.prompts import TextFormat, View
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE, read_calibration_file
from arena_distill.evaluation.eval_rows import eval_files
from arena_distill.evaluation.submission import HEADER
from arena_distill.evaluation.submission_ensemble import manifest_path
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.inference.tta import tta_views
from arena_distill.models.backbone import model_identity
from arena_distill.runtime.artifacts import (
    fingerprint,
    locked,
    partial_directory,
    read_manifest,
    read_manifest_file,
    recover,
    require_writable,
    sha256_file,
)
from arena_distill.runtime.errors import ArenaError, InputError
from arena_distill.runtime.job import Job
from arena_distill.runtime.stages import INFER_TTA

STAGE = INFER_TTA.name
LENGTHS_SETTING = "--tta-lengths (or TTA_LENGTHS)"
_DECISIVE_FILES = (
    "text_format.json", "*config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """A submission as its manifest will record it; ``final`` is the CSV file."""

    model: Path
    views: list[View]
    calibration: Path  # may be missing
    calibration_given: bool  # by name, so that it need not be of these weights
    head: Path | None  # exported head, or a student's directory, that the model must agree with

    @property
    def manifest(self) -> Path:
        """Describes the submission and the logits."""
        return manifest_path(self.final)

    @property
    def logits(self) -> Path:
        """Raw logits of every view and row."""
        return self.final.with_suffix(".logits.parquet")

    def is_up_to_date(self) -> bool:
        """Whether the submission and its logits are there, whole, and of these settings and inputs."""
        manifest = read_manifest_file(self.manifest)
        if manifest is None or manifest["fingerprint"] != self.fingerprint:
            return False
        files = {path.name: path for path in (self.final, self.logits)}
        recorded = manifest["outputs"]
        return recorded.keys() == files.keys() and all(
            path.is_file() and sha256_file(path) == recorded[name] for name, path in files.items()
        )

    def workplace(self, layout: dict[str, Any]) -> Path:
        """Where finished scores are kept: those of another arithmetic or other batches are others.

        Args:
            layout: what, beside settings and inputs, decides the last bits of a logit.
        """
        return self._beside(f"{self.fingerprint[:12]}-{fingerprint(layout, {})[:8]}")

    def leftovers(self, mine: bool) -> list[Path]:
        """What interrupted runs with the same output left: this job's, or those of other settings and inputs."""
        ours = self._beside(f"{self.fingerprint[:12]}-").name
        found = sorted(self.final.parent.glob(f"{self._beside('').name}-*"))
        return [path for path in found if path.name.startswith(ours) == mine]

    def tidy(self) -> None:
        """Remove what a kill between publishing and tidying left, unless another process is at it again."""
        if old := self.leftovers(mine=True):
            with suppress(ArenaError), locked(self.final):
                for path in old:
                    shutil.rmtree(path, ignore_errors=True)

    def _beside(self, tag: str) -> Path:
        """In the directory of the output, whatever links there: what is finished is put in place by renaming."""
        return self.final.parent / partial_directory(self.final, tag).name


def plan_prediction(settings: PredictSettings) -> PredictJob:
    """Find the student, its calibration and the rows, and check what can be checked without loading a model.

    Raises:
        InputError: something is missing, unfinished or damaged, or the output would overwrite an input.
        SettingsError: a length limit that the texts do not fit, or no limit at all.
    """
    model = settings.model
    manifest = finished_student(model)
    trained_with = manifest.get("max_length") or (manifest.get("all_settings") or {}).get("teacher_maxlen")
    lengths = settings.lengths(trained_with, model)
    layout = TextFormat.load(model)
    for length in lengths:
        layout.check_limit(length, LENGTHS_SETTING)
    views = tta_views(lengths, settings.tta_swap)
    calibration = Path(settings.temperature_json) if settings.temperature_json else model / CALIBRATION_FILE
    given = bool(settings.temperature_json) and calibration.resolve() != (model / CALIBRATION_FILE).resolve()
    if settings.temperature_json or calibration.is_file():
        read_calibration_file(calibration)
    files = eval_files(settings)
    head = settings.head_path or settings.classifier_from_dir
    if settings.head_path and settings.classifier_from_dir:
        raise InputError("--head-path and --classifier-from-dir are both given -> give one of the two")
    inputs = {
        "test_csv": files["test_csv"],
        "model": student_identity(model),
        "calibration": sha256_file(calibration) if calibration.is_file() else "none",
    }
    if head:
        inputs["head"] = _head_identity(Path(head))
    job = PredictJob(
        settings={"tta_lengths": lengths, "tta_swap": settings.tta_swap, "predict_bf16": settings.predict_bf16},
        inputs=inputs,
        final=settings.submission,
        model=model,
        views=views,
        calibration=calibration,
        calibration_given=given,
        head=Path(head) if head else None,
    )
    _refuse_overwriting(job, settings)
    return job


def finished_student(model: Path) -> dict[str, Any]:
    """The manifest of a finished student.

    Raises:
        InputError: there is none, it was never trained to judge, or its weights are cut off.
    """
    recover(model)
    if not model.is_dir():
        raise InputError(f"{model}: no such directory -> give the directory of a student in --model-dir (or MODEL_DIR)")
    manifest = read_manifest(model)
    if manifest is None:
        raise InputError(f"{model}: no finished student there (no manifest.json) -> let the step that writes it finish")
    TextFormat.load(model)  # a backbone has none, and a head that nobody trained
    for name, size in manifest.get("output_bytes", {}).items():
        file = model / name
        if file.suffix == ".safetensors" and (not file.is_file() or file.stat().st_size != size):
            raise InputError(f"{file}: missing or cut off -> make this student again")
    return manifest


def student_identity(model: Path) -> str:
    """What tells one student from another: weights (large ones sampled), tokenizer, text format, quantization."""
    small = {
        file.name: sha256_file(file)
        for pattern in _DECISIVE_FILES
        for file in model.glob(pattern)
        if file.is_file() and not file.name.startswith(".")
    }
    return fingerprint({"weights": model_identity(str(model))}, small)


def _head_identity(head: Path) -> str:
    if head.is_dir():
        return student_identity(head)
    if not head.is_file():
        raise InputError(f"{head}: no such head -> export it (scripts/export_classifier_head.py), or correct the path")
    return sha256_file(head)


def _refuse_overwriting(job: PredictJob, settings: PredictSettings) -> None:
    """Refuse now what would fail, or destroy something, after the work."""
    advice = "choose another --out (or OUT)"
    require_writable(job.final)
    given = [settings.test_file, settings.labels_file, settings.truth_file, job.calibration, job.head]
    inputs = {path.resolve() for path in given if path is not None}
    directories = [path.resolve() for path in (job.model, job.head) if path is not None and path.is_dir()]
    for written in (job.final, job.logits, job.manifest):
        place = written.resolve()
        if place in inputs:
            raise InputError(f"{written}: would overwrite an input -> {advice}")
        if any(place.is_relative_to(directory) for directory in directories):
            raise InputError(f"{written}: lies inside the model {job.model} -> {advice}")
        if written.is_dir():
            raise InputError(f"{written}: is a directory -> {advice}")
    if job.final.is_file():
        with job.final.open("rb") as stream:
            first = stream.readline(1000).decode("utf-8-sig", "replace").strip()
        if first not in ("", ",".join(HEADER)):
            raise InputError(f"{job.final}: is no submission, and would be overwritten -> {advice}")
