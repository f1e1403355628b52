"""Scores of predicted class probabilities. NumPy float64 throughout; classes in the order A, B, tie.

Every function takes what it is given as array-like, works in float64, and raises ``ValueError`` for a wrong shape,
a value that is not finite, or an empty input: a score of nothing is not a number that anyone should read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.data.records import CLASSES, SWAPPED

EPSILON = float(np.finfo(np.float64).eps)
"""Clip of the Kaggle log loss: the float64 machine epsilon, as ``sklearn.metrics.log_loss`` since 1.5."""

ECE_BINS = 15
"""Equal-width bins of the expected calibration error and of reliability diagrams."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one set of predictions. All but ``rows`` are means over rows; lower is better but for accuracy."""

    log_loss: float
    accuracy: float
    ece: float
    brier: float
    rows: int

    def as_dict(self) -> dict[str, float | int]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def softmax(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Softmax of ``logits / temperature`` over the last axis.

    Args:
        logits: ``[..., classes]``.
        temperature: positive; above 1 flattens, below 1 sharpens.

    Returns:
        float64 probabilities of the same shape.

    Raises:
        ValueError: a logit is not finite, there are no logits, or the temperature is not a positive number.
    """
    return np.exp(log_softmax(logits, temperature))


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Logarithm of ``softmax``, without rounding small probabilities to zero. Same arguments and errors."""
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"logits must have at least one row and one class, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    # The maximum goes first: dividing first could overflow for a small temperature.
    scaled = (values - values.max(axis=-1, keepdims=True)) / temperature
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def kaggle_log_loss(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean cross entropy in nats, as Kaggle scores a submission.

    Probabilities are clipped to ``[eps, 1 - eps]`` with float64's machine epsilon (``sklearn.metrics.log_loss`` since
    1.5) and each row is divided by its sum. Soft targets are allowed: the mean of ``-sum(target * log(probability))``.

    Args:
        probabilities: ``[N, 3]``, not negative.
        targets: ``[N, 3]``, one-hot labels or class probabilities.
    """
    p, t = _pair(probabilities, targets)
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    clipped /= clipped.sum(axis=1, keepdims=True)
    return float(-(t * np.log(clipped)).sum(axis=1).mean())


def accuracy(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Share of rows whose most probable class is the target's largest class (of equal ones, the first)."""
    p, t = _pair(probabilities, targets)
    return float((p.argmax(axis=1) == t.argmax(axis=1)).mean())


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top label.

    Rows fall into ``bins`` equal-width bins ``(k/bins, (k+1)/bins]`` of their highest probability; the error is the
    mean over rows of their bin's ``|mean confidence - mean accuracy|`` (Guo et al. 2017, "On Calibration of Modern
    Neural Networks", equation 3). With soft targets a row's accuracy is the target's mass on the predicted class,
    which is the share of votes that would agree, so that a prediction equal to the target has no error.

    Args:
        probabilities: ``[N, 3]``.
        targets: ``[N, 3]``.
        bins: number of bins, at least 1.
    """
    p, t = _pair(probabilities, targets)
    confidence, hit = top_label(p, t)
    gap = np.bincount(confidence_bin(confidence, bins), weights=confidence - hit, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def top_label(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ``[N, 3]`` probabilities and targets the highest probability of each row, and the target's mass on it."""
    predicted, rows = p.argmax(axis=1), np.arange(len(p))
    return p[rows, predicted], t[rows, predicted]


def confidence_bin(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Which of ``bins`` equal-width bins ``(k/bins, (k+1)/bins]`` each confidence falls into; ``[N]``."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    # Inner edges only: confidences of 0 and (by rounding) just above 1 belong to the first and the last bin.
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def brier_score(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Brier's score: squared error summed over the classes, mean over rows; from 0 to 2 (Brier 1950, equation 2)."""
    p, t = _pair(probabilities, targets)
    return float(((p - t) ** 2).sum(axis=1).mean())


def swap_gap(probabilities: ArrayLike, swapped_probabilities: ArrayLike) -> float:
    """How much the verdict depends on which answer stands first; 0 for a judge without position bias.

    Args:
        probabilities: ``[N, 3]`` as predicted for (A, B).
        swapped_probabilities: ``[N, 3]`` as predicted for (B, A), columns as predicted; swapped back in here.

    Returns:
        Mean over rows of the L1 distance, from 0 to 2.
    """
    p, q = _matrix(probabilities, "probabilities"), _matrix(swapped_probabilities, "swapped probabilities")
    _same_rows(p, q, "swapped probabilities")
    return float(row_gaps(p, q[:, SWAPPED]).mean())


def row_gaps(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """L1 distance of two predictions of the same rows in the same class order, ``[N, 3]`` each; ``[N]``, 0 to 2."""
    return np.asarray(np.abs(p - q).sum(axis=1))


def score(probabilities: ArrayLike, targets: ArrayLike) -> Scores:
    """All metrics of ``probabilities`` ``[N, 3]`` against ``targets`` ``[N, 3]``."""
    return Scores(
        log_loss=kaggle_log_loss(probabilities, targets),
        accuracy=accuracy(probabilities, targets),
        ece=expected_calibration_error(probabilities, targets),
        brier=brier_score(probabilities, targets),
        rows=len(np.asarray(targets)),
    )


def _pair(probabilities: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, t = _matrix(probabilities, "probabilities"), _matrix(targets, "targets")
    _same_rows(p, t, "targets")
    return p, t


def _matrix(values: ArrayLike, name: str) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(CLASSES):
        raise ValueError(f"{name} must have shape [N, {len(CLASSES)}], not {list(matrix.shape)}")
    if not len(matrix):
        raise ValueError(f"{name} have no rows")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ValueError(f"{name} must be finite; index {row} holds {matrix[row].tolist()}")
    if (matrix < 0).any():
        row = int(np.flatnonzero((matrix < 0).any(axis=1))[0])
        raise ValueError(f"{name} must not be negative (logits?); index {row} holds {matrix[row].tolist()}")
    return matrix


def _same_rows(first: np.ndarray, second: np.ndarray, name: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows of probabilities, but {len(second)} of {name}")
