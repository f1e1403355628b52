"""One student to be trained: what determines it, where it goes, and whether it is there already. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arena_distill.data.find_file import find_file
from arena_distill.data.reading import data_sha256, open_raw
from arena_distill.data.summary import LoadSummary
from arena_distill.models.backbone import check_backbone
from arena_distill.runtime.artifacts import recover, require_replaceable, sha256_path
from arena_distill.runtime.job import Job
from arena_distill.training.clean_base import require_unseen
from arena_distill.training.soft_labels import find_label_files
from arena_distill.training.student_settings import StudentSettings

STAGE = "student-train"

# What these settings say does not change the weights; data files count by their content.
_WITHOUT_EFFECT = {
    "mode", "test_csv", "labels_csv", "truth_parquet", "output_dir", "run", "force", "report_to", "train_csv",
    "student_output_model_dir", "student_submission_path", "student_stats_only", "student_eval_batch_size",
    "student_num_workers", "student_infer_8bit", "student_infer_tta_lengths", "student_infer_tta_swap",
    "student_extra_csvs", "student_model", "distill_teachers",
}  # fmt: skip
_ONLY_WITH_TEACHERS = "distill_"
_ONLY_WITH_FOLDS = "cv_"


@dataclass(frozen=True, kw_only=True)
class StudentJob(Job):
    """A training run as its manifest will record it."""

    backbone: str
    train_file: Path
    label_files: list[Path]  # of the teachers; empty: votes alone

    @classmethod
    def plan(cls, settings: StudentSettings) -> StudentJob:
        """Find the inputs and hash them.

        Raises:
            InputError: an input is missing, or the output directory holds something that is not ours to replace.
        """
        backbone = check_backbone(settings.student_model, "--student-model")
        for later in filter(None, (settings.test_csv, settings.labels_csv)):
            open_raw(Path(later), LoadSummary(later))  # job.sh comes to these only after hours of training
        train_file = find_file(settings.train_csv, "train", "--train-csv")
        inputs = {"train_csv": data_sha256(train_file)}
        require_unseen(backbone, inputs["train_csv"], "--student-model")
        inputs |= {f"extra_csv_{number}": data_sha256(path) for number, path in enumerate(settings.extra_csvs)}
        inputs["student_model"] = sha256_path(Path(backbone)) if Path(backbone).is_dir() else backbone
        label_files = find_label_files(settings.teacher_patterns, "--distill-teachers") if settings.distills else []
        inputs |= {f"teacher_{number}": sha256_path(path) for number, path in enumerate(label_files)}
        idle = [] if settings.distills else [_ONLY_WITH_TEACHERS]
        idle += [_ONLY_WITH_FOLDS] if settings.cv_fold_idx is None else []
        decisive = {
            name: value
            for name, value in settings.dump().items()
            if name not in _WITHOUT_EFFECT and not name.startswith(tuple(idle))
        }
        final = settings.model_dir
        recover(final)
        require_replaceable(final, STAGE)
        return cls(
            settings=decisive,
            inputs=inputs,
            final=final,
            backbone=backbone,
            train_file=train_file,
            label_files=label_files,
        )
