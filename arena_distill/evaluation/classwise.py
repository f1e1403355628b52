"""What is said of each class: shares, precision and recall, and which classes are taken for which. NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from arena_distill.data.records import CLASSES
from arena_distill.evaluation.comparison import row_losses


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rows of each class (first axis) by the class that they were given; int64 ``[3, 3]``.

    Both are the largest of ``[N, 3]``, and of equal ones the first, as in ``metrics.accuracy``.
    """
    pairs = targets.argmax(axis=1) * len(CLASSES) + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def per_class(probabilities: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    """Figures of A, B and tie.

    Args:
        probabilities: ``[N, 3]``.
        targets: ``[N, 3]``; a row belongs to the largest of its three.

    Returns:
        For each class ``class``, ``rows``, ``share`` of the votes, ``mean_probability`` that it was given,
        ``predicted`` rows, ``log_loss`` on its own rows, ``precision``, ``recall``, ``f1``, and ``brier``: the mean
        over all rows of ``(probability - target)²``. None where there is no row to take a mean of.
    """
    counts = confusion_matrix(probabilities, targets)
    losses = row_losses(probabilities, targets)
    true = targets.argmax(axis=1)
    found = []
    for k, name in enumerate(CLASSES):
        rows, predicted, hits = int(counts[k].sum()), int(counts[:, k].sum()), int(counts[k, k])
        found.append(
            {
                "class": name,
                "rows": rows,
                "share": float(targets[:, k].mean()),
                "mean_probability": float(probabilities[:, k].mean()),
                "predicted": predicted,
                "log_loss": float(losses[true == k].mean()) if rows else None,
                "precision": hits / predicted if predicted else None,
                "recall": hits / rows if rows else None,
                "f1": 2 * hits / (rows + predicted) if rows + predicted else None,
                "brier": float(((probabilities[:, k] - targets[:, k]) ** 2).mean()),
            }
        )
    return found
