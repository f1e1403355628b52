"""Every fold's student, both averages, the merged model and the ensemble, side by side on rows that none has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.students import FoldStudent
from arena_distill.data.prompts import View
from arena_distill.data.records import Rows
from arena_distill.evaluation.calibration_file import read_calibration, view_names
from arena_distill.evaluation.ensemble import combine, equal_weights
from arena_distill.evaluation.eval_rows import EvalRows
from arena_distill.evaluation.metrics import Scores, score, softmax
from arena_distill.evaluation.scoreboard import TRUTH_NAME, format_table
from arena_distill.inference.judge import load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.models.release import release_memory
from arena_distill.runtime.errors import InputError


def fold_views(max_length: int) -> list[View]:
    """How students are calibrated and scored: both orders of the answers, at the length they were trained at."""
    return tta_views([max_length], swap=True)


def fold_temperatures(students: Sequence[FoldStudent]) -> list[float]:
    """The temperature of each student.

    Raises:
        InputError: a calibration is missing, of other weights, or was fitted with other views.
    """
    found = []
    for student in students:
        calibration = read_calibration(student.directory)
        views = view_names(fold_views(student.max_length))
        if calibration is None or calibration.views != views:
            problem = "has no calibration.json" if calibration is None else f"calibrated at {calibration.views}"
            raise InputError(
                f"{student.directory}: {problem}; step 5 calibrates at {', '.join(views)} -> "
                "train this fold's student again"
            )
        found.append(calibration.temperature)
    return found


def mean_temperature(temperatures: Sequence[float]) -> float:
    """The geometric mean: a temperature divides, so that 1/2 and 2 cancel out."""
    return math.exp(sum(map(math.log, temperatures)) / len(temperatures))


@dataclass(frozen=True)
class Averaged:
    """The directories that step 6 made."""

    exact: Path
    mean: Path
    merged: Path


def evaluate(
    settings: AverageSettings,
    students: Sequence[FoldStudent],
    temperatures: Sequence[float],
    made: Averaged,
    base: str,
    rows: EvalRows,
) -> dict[str, Any]:
    """Score all of them on the same rows, print the table, and return it for the manifest.

    Args:
        settings: of the step.
        students: of the folds.
        temperatures: theirs.
        made: of these students.
        base: of every adapter.
        rows: with votes.
    """
    some = _chosen(len(rows.rows), settings)
    texts = rows.rows.take(some)
    assert rows.votes is not None
    votes, views = rows.votes[some], fold_views(students[0].max_length)
    common = mean_temperature(temperatures)

    def probabilities(directory: Path, temperature: float) -> np.ndarray:
        return _probabilities(settings, directory, base, texts, views, temperature)

    of_folds = [probabilities(s.directory, t) for s, t in zip(students, temperatures, strict=True)]
    entries = {
        **{f"student of fold {student.fold}": p for student, p in zip(students, of_folds, strict=True)},
        "averaged, exact": probabilities(made.exact, common),
        "averaged, mean": probabilities(made.mean, common),
        "merged": probabilities(made.merged, common),
        "ensemble of the students": combine(np.stack(of_folds), equal_weights(len(of_folds))),
    }
    table = {name: score(p, votes) for name, p in entries.items()}
    shown: dict[str, Scores] = dict(table)
    if rows.truth is not None:
        shown[TRUTH_NAME] = score(rows.truth[some], votes)
    print(format_table(list(shown.items()), f"{rows.test_file}, held out from every fold"))
    scores = [table[name].as_dict() for name in entries]
    return {
        "rows": len(texts),
        "folds": [{"fold": student.fold, **scores[k]} for k, student in enumerate(students)],
        **dict(zip(("averaged_exact", "averaged_mean", "merged", "probability_ensemble"), scores[-4:], strict=True)),
    }


def _chosen(count: int, settings: AverageSettings) -> np.ndarray:
    wanted = settings.average_eval_rows
    if not wanted or wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(settings.seed).choice(count, wanted, replace=False))


def _probabilities(
    settings: AverageSettings, directory: Path, base: str, rows: Rows, views: list[View], temperature: float
) -> np.ndarray:
    half = settings.average_bf16 == "1" or (settings.average_bf16 == "auto" and torch.cuda.is_available())
    judge = load_judge(directory, max_length=views[0].max_length, dtype="bfloat16" if half else "float32", base=base)
    judge.max_batch_tokens = settings.average_eval_tokens
    logits = judge.view_logits(rows, views)
    del judge
    release_memory()  # one model at a time
    return np.asarray(softmax(logits, temperature).mean(axis=0))


def held_out_table(students: Sequence[FoldStudent]) -> str:
    """What each student scored on its own fold, for want of rows that all of them can be scored on."""
    entries = [
        (f"student of fold {student.fold} ({student.held_out.get('rows')} rows)", _without_rows(student.held_out))
        for student in students
    ]
    return format_table(entries, "Each student on the rows of its own fold that steered nothing")


def _without_rows(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name != "rows"}
