from __future__ import annotations

import numpy as np
import pytest

from arena_distill.data.prompts import View
from arena_distill.data.records import SWAPPED
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.metrics import swap_gap
from arena_distill.evaluation.position_bias import position_bias

ORDERS = [View(64), View(64, True)]


def bootstrap(rows: int) -> PromptBootstrap:
    return PromptBootstrap(np.arange(rows), 200, 0)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), size=shape)


def test_a_judge_that_does_not_look_at_positions_has_no_bias() -> None:
    p = draw(40)
    found = position_bias(ORDERS, np.stack([p, p]), bootstrap(40))
    assert found is not None
    for name in ("swap_gap", "flipped_verdicts", "flipped_winners", "first_position_preference"):
        assert found[name]["value"] == pytest.approx(0, abs=1e-12)
    expected = (1 - p[:, 2].mean()) / 2
    assert found["first_answer_probability"]["value"] == pytest.approx(expected)
    assert found["unbiased_first_answer_probability"] == pytest.approx(expected)


def test_a_judge_that_always_takes_the_first_answer_flips_every_verdict() -> None:
    always_first = np.tile([0.8, 0.1, 0.1], (30, 1))  # as shown
    found = position_bias(ORDERS, np.stack([always_first, always_first[:, SWAPPED]]), bootstrap(30))
    assert found is not None
    assert found["flipped_verdicts"] == found["flipped_winners"] == {"value": 1, "low": 1, "high": 1}
    assert found["first_answer_probability"]["value"] == pytest.approx(0.8)
    assert found["first_position_preference"]["value"] == pytest.approx(0.7)
    assert found["unbiased_first_answer_probability"] == pytest.approx(0.45)
    assert found["swap_gap"]["value"] == pytest.approx(1.4)


def test_a_verdict_that_becomes_a_tie_flips_without_another_winner() -> None:
    shown, swapped = np.array([[0.6, 0.1, 0.3], [0.6, 0.1, 0.3]]), np.array([[0.2, 0.1, 0.7], [0.1, 0.8, 0.1]])
    found = position_bias(ORDERS, np.stack([shown, swapped]), bootstrap(2))
    assert found is not None
    assert found["flipped_verdicts"]["value"] == 1
    assert found["flipped_winners"]["value"] == 0.5


def test_the_gap_is_that_of_the_metrics_and_lengths_are_averaged_within_each_order() -> None:
    views = [View(64), View(64, True), View(128), View(128, True), View(256)]
    p = draw(5, 50, seed=3)
    found = position_bias(views, p, bootstrap(50))
    assert found is not None and found["lengths"] == [64, 128]
    shown, swapped = p[[0, 2]].mean(axis=0), p[[1, 3]].mean(axis=0)
    assert found["swap_gap"]["value"] == pytest.approx(swap_gap(shown, swapped[:, SWAPPED]))
    assert found["swap_gap"]["low"] < found["swap_gap"]["value"] < found["swap_gap"]["high"]
    together = (shown + swapped) / 2
    assert found["unbiased_first_answer_probability"] == pytest.approx((1 - together[:, 2].mean()) / 2)


def test_without_both_orders_of_one_length_there_is_nothing_to_say() -> None:
    assert position_bias([View(64), View(128, True)], draw(2, 10), bootstrap(10)) is None
    assert position_bias([View(64)], draw(1, 10), bootstrap(10)) is None
