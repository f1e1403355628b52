"""One student to be trained: what determines it, where it goes, and whether it is there already. Imports no torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena_distill.data.reading import open_raw
from arena_distill.data.summary import LoadSummary
from arena_distill.models.backbone import check_backbone
from arena_distill.runtime.artifacts import (
    fingerprint,
    is_up_to_date,
    partial_directory,
    recover,
    require_replaceable,
    sha256_path,
)
from arena_distill.training.student_data import find_file
from arena_distill.training.student_settings import StudentSettings

STAGE = "student-train"

# What these settings say does not change the weights; data files count by their content.
_WITHOUT_EFFECT = {
    "mode", "test_csv", "labels_csv", "truth_parquet", "output_dir", "run", "force", "report_to", "train_csv",
    "student_output_model_dir", "student_submission_path", "student_stats_only", "student_eval_batch_size",
    "student_num_workers", "student_infer_8bit", "student_infer_tta_lengths", "student_infer_tta_swap",
    "student_extra_csvs", "student_model",
}  # fmt: skip


@dataclass(frozen=True)
class StudentJob:
    """A training run as its manifest will record it."""

    settings: dict[str, Any]  # those that determine the weights
    inputs: dict[str, str]  # input -> hash
    backbone: str
    final: Path

    @classmethod
    def plan(cls, settings: StudentSettings) -> StudentJob:
        """Find the inputs and hash them.

        Raises:
            InputError: an input is missing, or the output directory holds something that is not ours to replace.
        """
        backbone = check_backbone(settings.student_model, "--student-model")
        for later in filter(None, (settings.test_csv, settings.labels_csv)):
            open_raw(Path(later), LoadSummary(later))  # job.sh comes to these only after hours of training
        inputs = {"train_csv": _data_hash(find_file(settings.train_csv, "train", "--train-csv"))}
        inputs |= {f"extra_csv_{number}": _data_hash(path) for number, path in enumerate(settings.extra_csvs)}
        inputs["student_model"] = sha256_path(Path(backbone)) if Path(backbone).is_dir() else backbone
        decisive = {name: value for name, value in settings.dump().items() if name not in _WITHOUT_EFFECT}
        final = settings.model_dir
        recover(final)
        require_replaceable(final, STAGE)
        return cls(decisive, inputs, backbone, final)

    @property
    def fingerprint(self) -> str:
        """Hash of settings and inputs."""
        return fingerprint(self.settings, self.inputs)

    def is_up_to_date(self) -> bool:
        """Whether the finished student was made with these settings and inputs."""
        return is_up_to_date(self.final, self.fingerprint)

    def open_partial(self) -> Path:
        """The directory to work in; one left by a run with the same settings and inputs is gone on with.

        To be called under the lock of ``final``.
        """
        partial = partial_directory(self.final, self.fingerprint[:12])
        partial.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial / "model", ignore_errors=True)
        for other in self.final.parent.glob(f"{partial_directory(self.final).name}-*"):
            if other == partial:
                continue
            if not self.drop_if_empty(other):
                print(f"note: {other} is left from an interrupted run with other settings; delete it when not needed")
        return partial

    def drop_if_empty(self, partial: Path) -> bool:
        """Remove a partial directory without any checkpoint in it; we hold the lock, so nobody is working there."""
        if any(partial.glob("training/checkpoint-*")):
            return False
        shutil.rmtree(partial)
        return True


def _data_hash(path: Path) -> str:
    open_raw(path, LoadSummary(str(path)))  # says what is wrong with the path, if anything
    return sha256_path(path)
