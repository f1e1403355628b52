"""Train, calibration and holdout parts of a base file: disjoint, grouped by prompt, and remembered with the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arena_distill.data.folds import grouped_stratified_folds, make_folds
from arena_distill.data.identity import rows_sha256
from arena_distill.data.records import Rows
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import DataError, InputError

SPLIT_FILE = "split.json"
SPLIT_SCHEMA_VERSION = 1
PARTS = 10  # calibration and holdout take one tenth each

TRAIN, CALIBRATION, HOLDOUT = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """Which part each base row belongs to, and of which data.

    ``calibration`` rows choose the checkpoint (and, but for folds, the temperature); ``holdout`` rows only ever score.
    """

    part: np.ndarray  # int8 [N] by base_idx: 0 train, 1 calibration, 2 holdout
    rows_sha256: str

    def select(self, rows: Rows, part: int) -> Rows:
        """The base rows of one part, in file order."""
        return rows.take(np.flatnonzero(self.part == part))

    def save(self, directory: Path) -> None:
        """Write ``split.json``."""
        document = {
            "schema_version": SPLIT_SCHEMA_VERSION,
            "rows": len(self.part),
            "rows_sha256": self.rows_sha256,
            "calibration_base_idx": np.flatnonzero(self.part == CALIBRATION).tolist(),
            "holdout_base_idx": np.flatnonzero(self.part == HOLDOUT).tolist(),
        }
        write_atomically(directory / SPLIT_FILE, json.dumps(document))


def make_split(rows: Rows, seed: int, file: Path) -> Split:
    """One tenth of the rows each for calibration and holdout, stratified by label and grouped by prompt.

    With fewer than ten distinct prompts each part takes one fold of as many as there are prompts.

    Raises:
        DataError: fewer than three distinct prompts.
    """
    distinct = len(np.unique(rows["prompt_hash"].to_numpy()))
    if distinct < 3:
        raise DataError(
            f"has {distinct} distinct prompts; train, calibration and holdout need at least three", file=file,
            hint="give a larger file",
        )  # fmt: skip
    fold = make_folds(rows, n_folds=min(PARTS, distinct), seed=seed).fold
    part = np.full(len(rows), TRAIN, dtype=np.int8)
    part[fold == 0] = HOLDOUT
    part[fold == 1] = CALIBRATION
    return Split(part, rows_sha256(rows))


def cv_split(rows: Rows, n_folds: int, fold: int, seed: int, file: Path) -> Split:
    """Train on the other folds; of this one, half of the prompts choose the checkpoint and half only score.

    The folds are those of step 2 with the same number and seed, the halves those of step 5.

    Raises:
        DataError: fewer prompts than folds, or fewer than two in this fold.
    """
    distinct = len(np.unique(rows["prompt_hash"].to_numpy()))
    if distinct < n_folds:
        raise DataError(f"has {distinct} distinct prompts for {n_folds} folds", file=file, hint="use fewer folds")
    held_out = np.flatnonzero(make_folds(rows, n_folds, seed).fold == fold)
    scoring = scoring_half(rows.take(held_out), seed, file)
    part = np.full(len(rows), TRAIN, dtype=np.int8)
    part[held_out[~scoring]], part[held_out[scoring]] = CALIBRATION, HOLDOUT
    return Split(part, rows_sha256(rows))


def scoring_half(held_out: Rows, seed: int, file: Path) -> np.ndarray:
    """Which of a fold's held-out rows only score, bool ``[N]``; the others choose the checkpoint.

    The halves are stratified by label and share no prompt.

    Raises:
        DataError: all rows have the same prompt.
    """
    prompts = held_out["prompt_hash"].to_numpy()
    if len(np.unique(prompts)) < 2:
        problem = "the held-out rows of this fold have a single prompt, and cannot be divided"
        raise DataError(problem, file=file, hint="use fewer folds, or more data")
    labels = held_out["label"].to_numpy().astype(np.int64)
    return np.asarray(grouped_stratified_folds(labels, prompts, 2, seed) == 1)


def load_split(directory: Path, rows: Rows, train_file: Path) -> Split:
    """The split that a model was trained with, checked against the base rows at hand.

    Raises:
        InputError: the model's directory has no split.
        DataError: the rows are not those the model was trained on, so nothing could be said to be held out.
    """
    path = directory / SPLIT_FILE
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema_version"] != SPLIT_SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}, expected {SPLIT_SCHEMA_VERSION}")
        count, data = int(document["rows"]), str(document["rows_sha256"])
        if data == rows_sha256(rows):
            part = np.full(len(rows), TRAIN, dtype=np.int8)
            part[document["calibration_base_idx"]] = CALIBRATION
            part[document["holdout_base_idx"]] = HOLDOUT
            return Split(part, data)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing -> train the student first (--mode student-train)") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: broken ({error!r}) -> train the student again") from error
    raise DataError(
        f"these are not the {count:,} rows that {directory} was trained on", file=train_file,
        hint="give the same --train-csv as in student-train, or train again",
    )  # fmt: skip
