"""The rows a student trains on: base file, extra files, split, and what became of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from arena_distill.data.find_file import find_file
from arena_distill.data.loading import Loaded, load_labelled
from arena_distill.data.merging import (
    MergeCounts,
    first_of_each_prompt,
    is_extra,
    keep_rows,
    merge,
    shares_prompt,
    shuffle_extra_ab,
)
from arena_distill.data.records import Rows
from arena_distill.data.splits import CALIBRATION, HOLDOUT, TRAIN, Split, cv_split, make_split
from arena_distill.runtime.errors import DataError
from arena_distill.training.student_settings import StudentSettings


@dataclass(frozen=True)
class StudentData:
    """Canonical rows of each part, with the counts that a user asks about."""

    train: Rows  # base rows of the train part, then extra rows
    calibration: Rows
    holdout: Rows
    split: Split
    counts: MergeCounts
    loaded: Sequence[Loaded]  # base file first

    @property
    def base(self) -> Rows:
        """All usable rows of the base file, in ``base_idx`` order."""
        return self.loaded[0].rows

    def __str__(self) -> str:
        counts = self.counts
        lines = [str(loaded.summary) for loaded in self.loaded]
        lines += [
            f"merged        {counts.merged:>9,}  ({counts.base:,} base + {counts.extra:,} extra)",
            f"deduplicated  {counts.duplicate_base + counts.duplicate_extra:>9,}  removed "
            f"({counts.duplicate_base:,} base, {counts.duplicate_extra:,} extra)",
            f"held out      {counts.held_out_extra:>9,}  extra rows left out: their prompt is held out",
            f"A/B shuffled  {counts.shuffled_extra:>9,}  extra rows",
            f"used          {len(self.train) + len(self.calibration) + len(self.holdout):>9,}  "
            f"(train {len(self.train):,}, calibration {len(self.calibration):,}, holdout {len(self.holdout):,})",
        ]
        return "\n".join(lines)


def load_student_data(settings: StudentSettings) -> StudentData:
    """Load, merge, de-duplicate, split and shuffle, in that order.

    The split covers all base rows and is made before any row is removed or sampled, so that settings that choose
    training rows never move a row between the parts. Extra rows whose prompt is held out are left out.

    Raises:
        DataError: a file cannot be used, or no training rows are left.
    """
    path = find_file(settings.train_csv, "train", "--train-csv")
    base = load_labelled(path)
    extras = [load_labelled(extra) for extra in settings.extra_csvs]
    if settings.cv_fold_idx is None:
        split = make_split(base.rows, settings.seed, path)
    else:
        split = cv_split(base.rows, settings.cv_num_folds, settings.cv_fold_idx, settings.seed, path)
    calibration, holdout = split.select(base.rows, CALIBRATION), split.select(base.rows, HOLDOUT)
    train_base = split.select(base.rows, TRAIN)
    if settings.student_max_samples:
        train_base = _sample(train_base, settings.student_max_samples, settings.seed)
    rows = merge(train_base, [loaded.rows for loaded in extras])
    held_out = shares_prompt(rows, pa.concat_tables([calibration, holdout])) & is_extra(rows)
    rows = keep_rows(rows, ~held_out)
    duplicate_base = duplicate_extra = 0
    if settings.student_dedup_by_prompt:
        keep = first_of_each_prompt(rows)
        duplicate_extra = int((~keep & is_extra(rows)).sum())
        duplicate_base = int((~keep).sum()) - duplicate_extra
        rows = keep_rows(rows, keep)
    shuffled = 0
    if settings.student_shuffle_ab:
        rows, shuffled = shuffle_extra_ab(rows, settings.seed)
    if not len(rows):
        raise DataError("no training rows are left", file=path, hint="give more rows, or fewer restrictions")
    counts = MergeCounts(
        base=len(base.rows),
        extra=sum(len(loaded.rows) for loaded in extras),
        duplicate_base=duplicate_base,
        duplicate_extra=duplicate_extra,
        held_out_extra=int(held_out.sum()),
        shuffled_extra=shuffled,
    )
    return StudentData(rows, calibration, holdout, split, counts, [base, *extras])


def _sample(rows: Rows, count: int, seed: int) -> Rows:
    if count >= len(rows):
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return rows.take(np.sort(chosen))
