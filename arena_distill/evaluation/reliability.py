"""How far confidence can be taken at its word: reliability bins, and what the temperature changed. NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.metrics import (
    ECE_BINS,
    brier_score,
    confidence_bin,
    expected_calibration_error,
    kaggle_log_loss,
    top_label,
)

_SIMULATIONS = 200


def reliability_bins(probabilities: np.ndarray, targets: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """The bins that make up the ECE of the top label; see ``metrics.expected_calibration_error``.

    Args:
        probabilities: ``[N, 3]``.
        targets: ``[N, 3]``.
        bins: equal-width bins of the highest probability.

    Returns:
        For each bin ``low``, ``high`` (it holds ``low < confidence <= high``), ``rows``, mean ``confidence`` and
        ``accuracy``; the means are None where there are no rows. The ECE is the mean over rows of
        ``|confidence - accuracy|``.
    """
    confidence, hit = top_label(probabilities, targets)
    place = confidence_bin(confidence, bins)
    rows = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=figure, minlength=bins) for figure in (confidence, hit)]
    return [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "rows": int(rows[k]),
            "confidence": float(sums[0][k] / rows[k]) if rows[k] else None,
            "accuracy": float(sums[1][k] / rows[k]) if rows[k] else None,
        }
        for k in range(bins)
    ]


def ece_if_calibrated(probabilities: np.ndarray, seed: int) -> float:
    """The ECE to expect of these probabilities if every one of them were true: what few rows alone bring about.

    Mean over simulations that draw each row's vote from its ``[3]`` probabilities.
    """
    confidence = probabilities.max(axis=1)
    place = confidence_bin(confidence)
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(_SIMULATIONS):
        hit = rng.random(len(confidence)) < confidence
        errors.append(np.abs(np.bincount(place, weights=confidence - hit, minlength=ECE_BINS)).sum() / len(confidence))
    return float(np.mean(errors))


def calibration_effect(logits: np.ndarray, temperature: float, targets: np.ndarray) -> dict[str, Any]:
    """Scores and reliability bins without the temperature (T = 1) and with it.

    Args:
        logits: raw, ``[V, N, 3]``, swapped views put back to A, B, tie.
        temperature: that divides them.
        targets: ``[N, 3]``.

    Returns:
        ``temperature``, ``before`` and ``after``: each ``log_loss``, ``ece``, ``brier`` and ``reliability``.
    """
    found: dict[str, Any] = {"temperature": temperature}
    for name, t in (("before", 1.0), ("after", temperature)):
        p = view_probabilities(logits, t)
        found[name] = {
            "log_loss": kaggle_log_loss(p, targets),
            "ece": expected_calibration_error(p, targets),
            "brier": brier_score(p, targets),
            "reliability": reliability_bins(p, targets),
        }
    return found
