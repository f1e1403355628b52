"""Temperatures for rows that are held out from training, none of them fitted on the row it serves."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from arena_distill.data.folds import grouped_stratified_folds
from arena_distill.evaluation.calibration import (
    TemperatureBoundWarning,
    calibration_report,
    fit_temperature,
    view_probabilities,
)
from arena_distill.evaluation.metrics import (
    brier_score,
    expected_calibration_error,
    kaggle_log_loss,
    log_softmax,
    softmax,
)

PARTS = 5


@dataclass(frozen=True)
class CrossFitted:
    """What held-out rows say of a student."""

    report: dict[str, Any]  # for calibration.json
    probabilities: np.ndarray  # float64 [N, 3], each row's with a temperature that was fitted without its prompt
    notes: tuple[str, ...]  # what the fits were doubtful about


def cross_fit(logits: np.ndarray, targets: np.ndarray, prompts: np.ndarray, seed: int) -> CrossFitted:
    """One temperature of all rows to use from now on, and honest figures of it from temperatures of other rows.

    The rows are divided into five parts by prompt. Each part's probabilities come from the temperature of the other
    parts. In the report ``cal`` figures are of all rows with the temperature fitted on them, ``holdout`` figures of the
    same rows with the others' temperatures.

    Args:
        logits: raw, ``[V, N, 3]``.
        targets: votes, ``[N, 3]``.
        prompts: a key for each row, equal for equal prompts, ``[N]``.
        seed: of the division.

    Raises:
        ValueError: see ``fit_temperature``.
    """
    parts = min(PARTS, len(np.unique(prompts)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TemperatureBoundWarning)
        report: dict[str, Any] = calibration_report(logits, targets)
        temperatures = np.full(len(targets), report["temperature"])
        if parts > 1:  # else there are no other rows
            part = grouped_stratified_folds(targets.argmax(axis=1), prompts, parts, seed)
            for number in range(parts):
                here = part == number
                temperatures[here] = fit_temperature(logits[:, ~here], targets[~here])
    before = view_probabilities(logits, 1.0)
    after = softmax(np.asarray(logits, np.float64) / temperatures[:, None]).mean(axis=0)
    nll = [_nll(logits, targets, np.ones(len(targets))), _nll(logits, targets, temperatures)]
    loss = [kaggle_log_loss(p, targets) for p in (before, after)]
    report |= {
        "rows_holdout": len(targets),
        "cross_fitted_parts": parts,
        **_change("nll_holdout", *nll),
        **_change("logloss_holdout", *loss),
    }
    for name, p in (("before", before), ("after", after)):
        report[f"ece_holdout_{name}"] = expected_calibration_error(p, targets)
        report[f"brier_holdout_{name}"] = brier_score(p, targets)
    return CrossFitted(report, after, tuple(dict.fromkeys(str(warning.message) for warning in caught)))


def _nll(logits: np.ndarray, targets: np.ndarray, temperatures: np.ndarray) -> float:
    """Mean over views and rows of the cross entropy at each row's own temperature."""
    scaled = log_softmax(np.asarray(logits, np.float64) / temperatures[:, None])
    return float(-(targets * scaled).sum(axis=-1).mean())


def _change(name: str, before: float, after: float) -> dict[str, float]:
    return {f"{name}_before": before, f"{name}_after": after, f"{name}_improvement": before - after}
