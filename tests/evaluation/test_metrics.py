from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arena_distill.evaluation import metrics


def random_case(seed: int, rows: int = 400, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels drawn from them, and unrelated soft targets."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(3, 1 / sharpness), size=rows)
    labels = np.array([rng.choice(3, p=row) for row in p])
    return p, labels, rng.dirichlet(np.ones(3), size=rows)


def finite_logits(rows: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-50, 50, allow_nan=False)
    return rows.flatmap(lambda n: hnp.arrays(np.float64, (n, 3), elements=elements))


@pytest.mark.parametrize("seed", range(5))
def test_log_loss_equals_scikit_learn(seed: int) -> None:
    p, labels, _ = random_case(seed)
    expected = sklearn.metrics.log_loss(labels, p, labels=[0, 1, 2])
    assert metrics.kaggle_log_loss(p, np.eye(3)[labels]) == pytest.approx(expected, rel=1e-12)


def test_log_loss_clips_a_certain_mistake_as_scikit_learn_does() -> None:
    p, labels = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]), np.array([1, 2])
    expected = sklearn.metrics.log_loss(labels, p, labels=[0, 1, 2])
    assert metrics.kaggle_log_loss(p, np.eye(3)[labels]) == pytest.approx(expected, rel=1e-12)
    assert metrics.kaggle_log_loss(p[:1], [[0, 1, 0]]) == pytest.approx(-math.log(2.0**-52), rel=1e-12)


def test_log_loss_of_soft_targets_is_the_cross_entropy() -> None:
    p, _, soft = random_case(1)
    p = 0.9 * p + 0.1 / 3
    terms = [-t * math.log(q) for row, target in zip(p, soft, strict=True) for q, t in zip(row, target, strict=True)]
    assert metrics.kaggle_log_loss(p, soft) == pytest.approx(math.fsum(terms) / len(p), rel=1e-12)


def test_log_loss_divides_rows_by_their_sum() -> None:
    p, labels, _ = random_case(2)
    p = 0.9 * p + 0.1 / 3
    targets = np.eye(3)[labels]
    assert metrics.kaggle_log_loss(p / 3, targets) == pytest.approx(metrics.kaggle_log_loss(p, targets), rel=1e-12)


def reference_ece(p: np.ndarray, targets: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, written out bin by bin."""
    total = 0.0
    for k in range(bins):
        inside = [i for i in range(len(p)) if k / bins < max(p[i]) <= (k + 1) / bins]
        if inside:
            confidence = sum(max(p[i]) for i in inside) / len(inside)
            correct = sum(targets[i][list(p[i]).index(max(p[i]))] for i in inside) / len(inside)
            total += len(inside) / len(p) * abs(correct - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_equals_a_loop_over_bins(seed: int, bins: int) -> None:
    p, labels, soft = random_case(seed)
    for targets in (np.eye(3)[labels], soft):
        assert metrics.expected_calibration_error(p, targets, bins) == pytest.approx(reference_ece(p, targets, bins))


def test_ece_counts_confidence_of_exactly_one_and_exact_bin_edges() -> None:
    p = np.array([[1.0, 0, 0], [0.0, 1, 0], [0.4, 0.4, 0.2], [0.6, 0.2, 0.2]])
    targets = np.eye(3)[[0, 2, 0, 1]]
    # Bins of a fifth: 0.4 is the top of the second, 0.6 of the third, both certain rows share the last.
    expected = (abs(1 - 0.4) + abs(0 - 0.6) + 2 * abs(0.5 - 1)) / 4
    assert metrics.expected_calibration_error(p, targets, bins=5) == pytest.approx(expected)


def test_ece_is_zero_for_a_prediction_equal_to_soft_targets() -> None:
    _, _, soft = random_case(3)
    assert metrics.expected_calibration_error(soft, soft) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_brier_is_the_sum_of_the_binary_scores_of_each_class(seed: int) -> None:
    p, labels, _ = random_case(seed)
    expected = sum(sklearn.metrics.brier_score_loss(labels == k, p[:, k], pos_label=True) for k in range(3))
    assert metrics.brier_score(p, np.eye(3)[labels]) == pytest.approx(expected, rel=1e-12)


def test_accuracy_equals_scikit_learn_and_takes_the_largest_soft_vote() -> None:
    p, labels, soft = random_case(4)
    assert metrics.accuracy(p, np.eye(3)[labels]) == sklearn.metrics.accuracy_score(labels, p.argmax(axis=1))
    assert metrics.accuracy(p, soft) == sklearn.metrics.accuracy_score(soft.argmax(axis=1), p.argmax(axis=1))


@given(finite_logits(st.integers(1, 8)), st.floats(0.05, 20))
def test_softmax_sums_to_one_keeps_the_ranking_and_ignores_a_shift(logits: np.ndarray, temperature: float) -> None:
    p = metrics.softmax(logits, temperature)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(p, metrics.softmax(logits + 7, temperature), rtol=1e-9, atol=1e-15)
    ordered = np.take_along_axis(p, np.argsort(logits, axis=1), axis=1)
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    np.testing.assert_array_equal(metrics.softmax([[1e300, -1e300, 0.0]], 0.05), [[1, 0, 0]])


@given(finite_logits(st.integers(1, 8)))
def test_swap_gap_is_zero_exactly_for_a_judge_that_swaps_with_its_answers(logits: np.ndarray) -> None:
    p = metrics.softmax(logits)
    assert metrics.swap_gap(p, p[:, [1, 0, 2]]) == 0


def test_swap_gap_of_a_judge_that_always_takes_the_first_answer_is_two() -> None:
    always_first = np.tile([1.0, 0, 0], (4, 1))
    assert metrics.swap_gap(always_first, always_first) == 2


def test_scores_hold_every_metric_by_name() -> None:
    p, labels, _ = random_case(6)
    targets = np.eye(3)[labels]
    assert metrics.score(p, targets).as_dict() == {
        "log_loss": metrics.kaggle_log_loss(p, targets),
        "accuracy": metrics.accuracy(p, targets),
        "ece": metrics.expected_calibration_error(p, targets),
        "brier": metrics.brier_score(p, targets),
        "rows": len(p),
    }


GOOD = np.array([[0.2, 0.3, 0.5]])


@pytest.mark.parametrize(
    ("p", "targets", "message"),
    [
        ([0.2, 0.3, 0.5], GOOD, "shape"),
        ([[0.5, 0.5]], GOOD, "shape"),
        (GOOD, [2], "shape"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "no rows"),
        ([[np.nan, 0.5, 0.5]], GOOD, "finite"),
        (GOOD, [[np.inf, 0, 0]], "finite"),
        ([[-1.0, 1.5, 0.5]], GOOD, "negative"),
        (np.vstack([GOOD, GOOD]), GOOD, "2 rows"),
    ],
)
def test_bad_input_is_refused(p: object, targets: object, message: str) -> None:
    for metric in (
        metrics.kaggle_log_loss,
        metrics.accuracy,
        metrics.expected_calibration_error,
        metrics.brier_score,
        metrics.swap_gap,
        metrics.score,
    ):
        with pytest.raises(ValueError, match=message):
            metric(p, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_softmax_refuses_a_bad_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        metrics.softmax([[0.0, 1, 2]], temperature)


@pytest.mark.parametrize("logits", [[[math.nan, 0, 0]], [[math.inf, 0, 0]], np.zeros((0, 3)), 1.0])
def test_softmax_refuses_bad_logits(logits: object) -> None:
    with pytest.raises(ValueError, match="logits"):
        metrics.softmax(logits)  # type: ignore[arg-type]
