"""Temperature scaling: one number that divides the logits, fitted on rows that the model did not train on.

Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. In ``beta = 1 / T`` the negative log
likelihood is a sum of log-sum-exps of linear functions, hence convex, so the fit is the root of its derivative.

Logits are raw logits in the class order A, B, tie, one view for each augmentation: ``[V, N, 3]`` with the swapped
views already swapped back, or ``[N, 3]`` for a single view.
"""

from __future__ import annotations

import json
import math
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.data.records import CLASSES
from arena_distill.evaluation.metrics import (
    brier_score,
    expected_calibration_error,
    kaggle_log_loss,
    log_softmax,
    softmax,
)
from arena_distill.runtime.errors import InputError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


class TemperatureBoundWarning(UserWarning):
    """The best temperature lies outside the allowed range; the nearest bound was taken."""


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature with the least mean negative log likelihood over all views and rows.

    Args:
        logits: ``[V, N, 3]`` or ``[N, 3]``.
        targets: ``[N, 3]``, one-hot labels or class probabilities.

    Returns:
        T in ``[MIN_TEMPERATURE, MAX_TEMPERATURE]``. Where every T is equally good (each row's logits are equal): 1.
        Never worse than T = 1 on the given rows.

    Warns:
        TemperatureBoundWarning: the best T is at or beyond a bound. At the lower one the logits separate the rows
            without an error, at the upper one they say nothing (or the opposite of the truth).

    Raises:
        ValueError: shapes do not agree, a value is not finite, a target does not sum to 1, or there are no rows.
    """
    from scipy.optimize import brentq

    views, t = _views_and_targets(logits, targets)
    z = views - views.max(axis=-1, keepdims=True)  # changes no probability, keeps beta * z from overflowing

    def slope(beta: float) -> float:
        """Derivative of the mean NLL in beta; never falls as beta grows."""
        return float(((softmax(z, 1 / beta) - t) * z).sum(axis=-1).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    slope_low, slope_high = slope(low), slope(high)
    flat = 4 * np.finfo(np.float64).eps * float(np.abs(z).mean())  # rounding noise of the slope
    if abs(slope_low) <= flat and abs(slope_high) <= flat:
        return 1.0
    if slope_low >= 0:
        return _at_bound(MAX_TEMPERATURE, "the logits tell the classes apart no better than chance")
    if slope_high <= 0:
        return _at_bound(MIN_TEMPERATURE, "the logits separate these rows without an error; use more rows")
    temperature = 1 / float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
    # Where 1 is already best, rounding may favour it by a last digit; then leave the model as it is.
    return temperature if _nll(views, t, temperature) < _nll(views, t, 1.0) else 1.0


def view_probabilities(logits: ArrayLike, temperature: float) -> np.ndarray:
    """Calibrated probabilities averaged over the views: mean over v of ``softmax(logits[v] / temperature)``.

    Args:
        logits: ``[V, N, 3]`` or ``[N, 3]``.
        temperature: positive.

    Returns:
        float64 ``[N, 3]``.
    """
    return softmax(_views(logits), temperature).mean(axis=0)


def calibration_report(
    cal_logits: ArrayLike,
    cal_targets: ArrayLike,
    holdout_logits: ArrayLike | None = None,
    holdout_targets: ArrayLike | None = None,
) -> dict[str, float | int | None]:
    """Fit the temperature on the calibration rows and say what it changes, there and on the holdout.

    Definitions, for each of ``cal`` and ``holdout``, ``before`` (T = 1) and ``after`` (the fitted T):
    ``nll`` is the mean over views and rows of ``-sum(target * log softmax(logits / T))``, not clipped: what the fit
    minimises. ``logloss`` is the Kaggle log loss of ``view_probabilities``: what a submission is scored on. ``ece``
    and ``brier`` are of ``view_probabilities`` too. ``improvement`` is before minus after: positive is better.

    Args:
        cal_logits: ``[V, N, 3]`` or ``[N, 3]``.
        cal_targets: ``[N, 3]``.
        holdout_logits: the same for rows that neither training nor this fit saw; None leaves the holdout's figures
            None and ``rows_holdout`` 0.
        holdout_targets: given exactly when ``holdout_logits`` are.

    Returns:
        Keys ``temperature``, ``rows_{cal,holdout}``, ``{nll,logloss}_{cal,holdout}_{before,after,improvement}`` and
        ``{ece,brier}_{cal,holdout}_{before,after}``, ready for JSON.

    Raises:
        ValueError: as ``fit_temperature``, or only one of the two holdout arguments is given.
    """
    if (holdout_logits is None) != (holdout_targets is None):
        raise ValueError("give both holdout_logits and holdout_targets, or neither")
    temperature = fit_temperature(cal_logits, cal_targets)
    report: dict[str, float | int | None] = {"temperature": temperature}
    report |= _split_figures("cal", cal_logits, cal_targets, temperature)
    if holdout_logits is None or holdout_targets is None:
        report |= {key.replace("_cal", "_holdout"): None for key in report if "_cal" in key} | {"rows_holdout": 0}
    else:
        report |= _split_figures("holdout", holdout_logits, holdout_targets, temperature)
    return report


def load_calibration(path: str | PathLike[str]) -> float:
    """The temperature in a ``calibration.json``.

    Raises:
        InputError: the file is missing, cannot be read, is not JSON, or has no finite positive ``temperature``.
    """
    advice = "fit it again with `main.py --mode student-calibrate`"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}) -> {advice}") from error
    except (ValueError, RecursionError) as error:  # broken JSON and bytes that are not UTF-8 are ValueErrors
        raise InputError(f"{path}: is not valid JSON ({error}) -> {advice}") from error
    if not isinstance(content, dict) or "temperature" not in content:
        raise InputError(f"{path}: holds no 'temperature' -> {advice}")
    temperature = content["temperature"]
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    # The comparison comes before float(): an integer too large for a float would overflow.
    if not is_number or not 0 < temperature < math.inf or temperature > 1e300:
        raise InputError(f"{path}: temperature must be a finite positive number, not {temperature!r:.40} -> {advice}")
    return float(temperature)


def _split_figures(split: str, logits: ArrayLike, targets: ArrayLike, temperature: float) -> dict[str, float | int]:
    views, t = _views_and_targets(logits, targets)
    before, after = _figures(views, t, 1.0), _figures(views, t, temperature)
    figures: dict[str, float | int] = {f"rows_{split}": len(t)}
    for metric in before:
        figures[f"{metric}_{split}_before"] = before[metric]
        figures[f"{metric}_{split}_after"] = after[metric]
        if metric in ("nll", "logloss"):
            figures[f"{metric}_{split}_improvement"] = before[metric] - after[metric]
    return figures


def _figures(views: np.ndarray, targets: np.ndarray, temperature: float) -> dict[str, float]:
    probabilities = view_probabilities(views, temperature)
    return {
        "nll": _nll(views, targets, temperature),
        "logloss": kaggle_log_loss(probabilities, targets),
        "ece": expected_calibration_error(probabilities, targets),
        "brier": brier_score(probabilities, targets),
    }


def _nll(views: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    return float(-(targets * log_softmax(views, temperature)).sum(axis=-1).mean())


def _views(logits: ArrayLike) -> np.ndarray:
    views = np.asarray(logits, dtype=np.float64)
    if views.ndim == 2:
        views = views[None]
    if views.ndim != 3 or views.shape[2] != len(CLASSES):
        raise ValueError(f"logits must have shape [V, N, {len(CLASSES)}] or [N, {len(CLASSES)}], not {views.shape}")
    if not views.size:
        raise ValueError(f"logits have no rows or no views: shape {views.shape}")
    if not np.isfinite(views).all():
        raise ValueError("logits must be finite")
    return views


def _views_and_targets(logits: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    views, t = _views(logits), np.asarray(targets, dtype=np.float64)
    if t.shape != views.shape[1:]:
        raise ValueError(f"targets must have shape {views.shape[1:]} to match the logits, not {t.shape}")
    if not np.isfinite(t).all() or (t < 0).any() or not np.allclose(t.sum(axis=1), 1, rtol=0, atol=1e-6):
        raise ValueError("each row of targets must be finite, not negative, and sum to 1")
    return views, t


def _at_bound(temperature: float, reason: str) -> float:
    message = f"the temperature is at its bound of {temperature:g}: {reason}"
    warnings.warn(message, TemperatureBoundWarning, stacklevel=3)
    return temperature
