from __future__ import annotations

import numpy as np
import pytest

from arena_distill.evaluation.calibration import fit_temperature, view_probabilities
from arena_distill.evaluation.metrics import expected_calibration_error, kaggle_log_loss, score
from arena_distill.evaluation.reliability import calibration_effect, ece_if_calibrated, reliability_bins


def draw(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and votes drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), size=rows)
    return p, np.eye(3)[(rng.random((rows, 1)) > p.cumsum(axis=1)[:, :2]).sum(axis=1)]


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_of_the_bins_is_the_ece(bins: int) -> None:
    p, t = draw(300)
    found = reliability_bins(p, t, bins)
    assert len(found) == bins and sum(b["rows"] for b in found) == 300
    gap = sum(b["rows"] * abs(b["confidence"] - b["accuracy"]) for b in found if b["rows"]) / 300
    assert gap == pytest.approx(expected_calibration_error(p, t, bins), abs=1e-12)
    for b in found:
        assert (b["confidence"] is None) == (b["accuracy"] is None) == (b["rows"] == 0)
        assert b["rows"] == 0 or b["low"] < b["confidence"] <= b["high"] + 1e-12
    assert (found[0]["low"], found[-1]["high"]) == (0, 1)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    found = reliability_bins(np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]), np.eye(3)[[0, 1]], bins=10)
    assert {number: b["rows"] for number, b in enumerate(found) if b["rows"]} == {4: 1, 9: 1}


def test_before_and_after_are_the_scores_without_and_with_the_temperature() -> None:
    rng = np.random.default_rng(1)
    p, t = draw(400, seed=2)
    logits = 3 * np.log(p)[None] + rng.normal(0, 0.1, size=(2, 400, 3))  # three times too sure
    temperature = fit_temperature(logits, t)
    found = calibration_effect(logits, temperature, t)
    for name, used in (("before", 1.0), ("after", temperature)):
        scores = score(view_probabilities(logits, used), t)
        assert {k: found[name][k] for k in ("log_loss", "ece", "brier")} == {
            k: getattr(scores, k) for k in ("log_loss", "ece", "brier")
        }
        assert sum(b["rows"] for b in found[name]["reliability"]) == 400
    assert found["temperature"] == temperature > 1.5
    assert found["after"]["log_loss"] < found["before"]["log_loss"] - 0.1
    assert found["after"]["ece"] < found["before"]["ece"] / 2


def test_the_ece_of_votes_drawn_from_the_probabilities_is_on_average_the_one_foretold() -> None:
    p, _ = draw(120)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(300):
        votes = np.eye(3)[(rng.random((120, 1)) > p.cumsum(axis=1)[:, :2]).sum(axis=1)]
        drawn.append(expected_calibration_error(p, votes))
    assert ece_if_calibrated(p, seed=0) == pytest.approx(np.mean(drawn), rel=0.06)
    assert ece_if_calibrated(np.tile(p, (50, 1)), seed=0) < ece_if_calibrated(p, seed=0) / 4
    assert kaggle_log_loss(p, p) < 1.1  # these probabilities do say something
