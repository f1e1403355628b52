from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from arena_distill.evaluation.classwise import confusion_matrix, per_class
from arena_distill.evaluation.metrics import accuracy, brier_score, kaggle_log_loss


def draw(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3), size=rows), np.eye(3)[rng.integers(3, size=rows)]


def test_precision_recall_f1_and_confusion_are_those_of_scikit_learn() -> None:
    p, t = draw(200)
    true, predicted = t.argmax(axis=1), p.argmax(axis=1)
    np.testing.assert_array_equal(confusion_matrix(p, t), sklearn_confusion(true, predicted))
    expected = precision_recall_fscore_support(true, predicted)
    found = per_class(p, t)
    for row, name in enumerate(("precision", "recall", "f1", "rows")):
        np.testing.assert_allclose([figures[name] for figures in found], expected[row], rtol=1e-12)


def test_the_classes_add_up_to_the_scores_of_all_rows() -> None:
    p, t = draw(150, seed=1)
    found = per_class(p, t)
    assert [figures["class"] for figures in found] == ["model_a", "model_b", "tie"]
    assert sum(f["rows"] * f["log_loss"] for f in found) / 150 == pytest.approx(kaggle_log_loss(p, t), abs=1e-12)
    assert sum(f["brier"] for f in found) == pytest.approx(brier_score(p, t), abs=1e-12)
    assert np.trace(confusion_matrix(p, t)) / 150 == pytest.approx(accuracy(p, t))
    assert sum(f["share"] for f in found) == pytest.approx(1)
    assert sum(f["mean_probability"] for f in found) == pytest.approx(1)


def test_a_class_that_nobody_voted_for_or_predicted_has_no_mean_of_nothing() -> None:
    p, t = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]), np.eye(3)[[0, 1]]
    first, second, tie = per_class(p, t)
    assert (first["precision"], first["recall"], first["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (second["precision"], second["recall"], second["f1"]) == (None, 0.0, 0.0)
    assert tie["rows"] == 0 and tie["log_loss"] is None
    assert (tie["precision"], tie["recall"], tie["f1"]) == (None, None, None)
    assert tie["brier"] == pytest.approx(0.01)


def test_soft_votes_count_by_their_largest_class_and_by_their_shares() -> None:
    p, t = np.array([[0.2, 0.5, 0.3]]), np.array([[0.3, 0.6, 0.1]])
    found = per_class(p, t)
    assert [f["rows"] for f in found] == [0, 1, 0]
    np.testing.assert_allclose([f["share"] for f in found], t[0])
    assert found[1]["log_loss"] == pytest.approx(kaggle_log_loss(p, t))
