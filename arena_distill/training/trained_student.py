"""A student on disk, as the modes after training see it: its judge, its calibration, the rows it learned from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arena_distill.data.find_file import find_file
from arena_distill.data.prompts import View
from arena_distill.data.records import targets
from arena_distill.data.splits import load_split
from arena_distill.evaluation.calibration_file import (
    CALIBRATION_FILE,
    read_calibration,
    temperature_for,
    view_names,
    weights_sha256,
    write_calibration,
)
from arena_distill.evaluation.cross_fit import CrossFitted, cross_fit
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.artifacts import read_manifest, recover
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.stages import DISTILL_STUDENT
from arena_distill.training.student_data import StudentData, load_student_data
from arena_distill.training.student_settings import StudentSettings

if TYPE_CHECKING:
    from arena_distill.inference.judge import ClassifierJudge

_ROW_SETTINGS = (
    "seed", "student_max_samples", "student_dedup_by_prompt", "student_shuffle_ab", "student_extra_csvs",
    "cv_num_folds", "cv_fold_idx",
)  # fmt: skip


class TrainedStudent:
    """The student that ``settings.model_dir`` holds.

    What it was trained with counts where the command at hand does not say otherwise: its length limit, and the
    settings that chose its rows.

    Raises:
        InputError: there is no finished student.
    """

    def __init__(self, settings: StudentSettings) -> None:
        self.settings = settings
        self.directory = settings.model_dir
        recover(self.directory)
        manifest = read_manifest(self.directory) or {}
        self._trained_with: dict[str, Any] = manifest.get("all_settings", {})
        self.teachers: list[str] = manifest.get("teachers") or []
        if manifest.get("stage") == DISTILL_STUDENT.name:
            raise InputError(
                f"{self.directory}: is a student of step 5 and calibrated already; main.py is for its own students"
            )
        if not {"student_max_length", *_ROW_SETTINGS} <= self._trained_with.keys():
            raise InputError(f"{self.directory}: no finished student there -> train one first (--mode student-train)")

    @property
    def max_length(self) -> int:
        """Length limit, tokens: as given, else as trained."""
        if "student_max_length" in self.settings.model_fields_set:
            return self.settings.student_max_length
        return int(self._trained_with["student_max_length"])

    @cached_property
    def weights(self) -> str:
        """What tells the weights that were loaded from others that may have taken their place since."""
        return weights_sha256(self.directory)

    @property
    def holds_out_fold(self) -> bool:
        """Whether its held-out rows are a fold, of which half chose the checkpoint and half only score."""
        return self._trained_with["cv_fold_idx"] is not None

    def cross_fit(self, logits: np.ndarray) -> CrossFitted:
        """What its holdout rows, of which ``logits`` are, ``[V, N, 3]``, say of its calibration."""
        holdout = self.data.holdout
        prompts = holdout["prompt_hash"].to_numpy()
        return cross_fit(logits, targets(holdout), prompts, int(self._trained_with["seed"]))

    @property
    def views(self) -> list[View]:
        """What inference averages over."""
        return tta_views(self.settings.tta_lengths or [self.max_length], self.settings.student_infer_tta_swap)

    @cached_property
    def judge(self) -> ClassifierJudge:
        """The model, loaded."""
        from arena_distill.models.quiet import quiet_libraries

        quiet_libraries()
        from arena_distill.inference.judge import load_judge

        _ = self.weights  # of these files, not of what stands there when the work is done
        dtype = "bfloat16" if self.settings.student_bf16 else "float16" if self.settings.student_fp16 else "float32"
        return load_judge(
            self.directory,
            max_length=self.max_length,
            batch_rows=self.settings.student_eval_batch_size,
            dtype=dtype,
            quant="int8" if self.settings.student_infer_8bit else "none",
        )

    @cached_property
    def train_file(self) -> Path:
        """The base file that it was trained on, as the command at hand names it."""
        return find_file(self.settings.train_csv, "train", "--train-csv")

    @cached_property
    def data(self) -> StudentData:
        """The very rows that it learned from, and those held out.

        Raises:
            DataError: the base file is another one than in training.
            InputError: the rows would be divided otherwise than they were in training.
        """
        chosen = {name: self._trained_with[name] for name in _ROW_SETTINGS}
        if missing := [path for path in chosen["student_extra_csvs"].split(",") if path and not Path(path).is_file()]:
            print(f"note: {', '.join(missing)} not found, so the baselines learn from the base rows alone")
            chosen["student_extra_csvs"] = ""
        trained = self.settings.model_copy(update=chosen | {"train_csv": str(self.train_file)})
        data = load_student_data(trained)
        saved = load_split(self.directory, data.loaded[0].rows, self.train_file)
        if not np.array_equal(saved.part, data.split.part):
            raise InputError(f"{self.directory}: was trained by a version that split rows otherwise -> train it again")
        return data

    @property
    def calibration_file(self) -> Path:
        """Where the temperature is."""
        return self.directory / CALIBRATION_FILE

    def write_calibration(self, report: dict[str, Any]) -> None:
        """Keep ``report`` with what it holds for: these weights, these views."""
        write_calibration(self.directory, report, self.views, self.weights)

    def has_fitted_views(self) -> bool:
        """Whether its calibration was fitted with the views and the arithmetic of the command at hand."""
        calibration = read_calibration(self.directory)
        settings = self.settings
        plain = not (settings.student_bf16 or settings.student_fp16 or settings.student_infer_8bit)
        return plain and calibration is not None and calibration.views == view_names(self.views)

    def temperature(self) -> float:
        """The fitted temperature, or 1 (with a remark) if none was fitted.

        Raises:
            InputError: it was fitted on other weights.
        """
        calibration = read_calibration(self.directory)
        advice = "run student-calibrate with the same settings"
        return temperature_for(calibration, self.views, self.calibration_file, advice)
