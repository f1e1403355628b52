"""The rows and soft labels of step 5, joined and checked against data file, folds file and table. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from arena_distill.data.fold_files import read_fold_csv
from arena_distill.data.folds import Folds, load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import is_extra, shares_prompt
from arena_distill.data.records import PROBABILITY_COLUMNS, Rows, targets
from arena_distill.data.splits import scoring_half
from arena_distill.inference.oof_table import read_oof_table
from arena_distill.runtime.errors import DataError
from arena_distill.runtime.stages import MAKE_FOLDS
from arena_distill.training.distill_job import DistillJob
from arena_distill.training.distill_settings import DistillSettings, teacher_weights
from arena_distill.training.processes import say
from arena_distill.training.soft_labels import SoftLabels, labels_of_families

_REMEDY = f"make the fold files again ({MAKE_FOLDS.script})"


@dataclass(frozen=True)
class StudentRows:
    """One fold's rows."""

    train: Rows  # base rows of the other folds, then extra rows
    selection: Rows  # half of the fold by prompt: chooses the checkpoint
    scoring: Rows  # the other half: only scores, and calibrates by cross-fitting


@dataclass(frozen=True)
class DistillData:
    """What all folds share."""

    base: Rows
    folds: Folds
    teachers: SoftLabels | None
    seed: int

    @classmethod
    def load(cls, settings: DistillSettings, job: DistillJob) -> DistillData:
        """Read data file, folds and table.

        Raises:
            DataError: a file cannot be used, or they do not belong together.
        """
        loaded = load_labelled(job.train_file)
        say(loaded.summary)
        folds = load_folds(settings.folds_path)
        folds.check(loaded.rows, settings.folds_path)
        teachers = None
        if job.table is not None:
            families = read_oof_table(job.table, loaded.rows, folds)
            weights = teacher_weights(settings.student_teachers)
            teachers = labels_of_families(families, weights, job.table, "STUDENT_TEACHERS")
            say(teachers.report(loaded.rows))
        return cls(loaded.rows, folds, teachers, settings.seed)

    def of_fold(self, job: DistillJob) -> StudentRows:
        """Rows of one fold, from its two files.

        Raises:
            DataError: a file is broken, of other data or of another fold, or holds other rows than its fold.
        """
        train = self._part(job.fold_train, job.fold, "train")
        val = self._part(job.fold_val, job.fold, "val")
        if (bad := shares_prompt(train, val)).any():
            row = int(np.flatnonzero(bad)[0]) + 1
            problem = f"has a prompt that {job.fold_val.name} holds out, and {int(bad.sum()) - 1} more rows have"
            raise DataError(problem, file=job.fold_train, row=row, hint=_REMEDY)
        scoring = scoring_half(val, self.seed, job.fold_val)
        return StudentRows(train, val.take(np.flatnonzero(~scoring)), val.take(np.flatnonzero(scoring)))

    def _part(self, path: Path, fold: int, part: Literal["train", "val"]) -> Rows:
        rows = read_fold_csv(path)
        extra = is_extra(rows)
        if part == "val" and extra.any():
            row = int(np.flatnonzero(extra)[0]) + 1
            raise DataError("an extra row is held out", file=path, row=row, column="base_idx", hint=_REMEDY)
        place = np.flatnonzero(~extra)
        index = rows["base_idx"].to_numpy()[place]

        def refuse(bad: np.ndarray, column: str, problem: str) -> None:
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                raise DataError(problem.format(index[first]), file=path, row=int(place[first]) + 1, column=column,
                                hint=_REMEDY)  # fmt: skip

        refuse(index >= len(self.base), "base_idx", "base row {} does not exist in the data file")
        known = np.array(self.base["row_hash"].to_pylist(), dtype=object)[index]
        given = np.array(rows["row_hash"].to_pylist(), dtype=object)[place]
        refuse(given != known, "row_hash", "is not that of base row {} in the data file")
        votes = (targets(rows)[place] != targets(self.base)[index]).any(axis=1)
        refuse(votes, PROBABILITY_COLUMNS[0], "the vote is not that of base row {} in the data file")
        held_out = self.folds.fold[index] == fold
        refuse(held_out != (part == "val"), "base_idx", f"base row {{}} is not of the {part} part of fold {fold}")
        wanted = np.flatnonzero((self.folds.fold == fold) == (part == "val"))
        if len(index) < len(wanted):
            absent = int(np.setdiff1d(wanted, index)[0])
            raise DataError(f"base row {absent} is missing", file=path, hint=_REMEDY)
        return rows
