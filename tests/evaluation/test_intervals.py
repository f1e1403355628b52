from __future__ import annotations

import numpy as np
import pytest

from arena_distill.evaluation.comparison import cluster_bootstrap, percentile_interval, row_losses
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.metrics import expected_calibration_error, score


def draw(rows: int, seed: int, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions ``sharpen`` times too sure, and votes."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.ones(3), size=rows)
    votes = np.eye(3)[(rng.random((rows, 1)) > truth.cumsum(axis=1)[:, :2]).sum(axis=1)]
    p = truth**sharpen
    return p / p.sum(axis=1, keepdims=True), votes


def test_values_are_the_scores_and_the_ends_those_of_the_cluster_bootstrap() -> None:
    p, t = draw(200, 0)
    prompts = np.arange(200) // 3
    found = PromptBootstrap(prompts, 300, 7).scores(p, t)
    scores = score(p, t)
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(
        {name: getattr(scores, name) for name in ("log_loss", "accuracy", "brier", "ece")}
    )
    losses = cluster_bootstrap(row_losses(p, t)[None], prompts, 300, 7)[:, 0]
    assert (found["log_loss"].low, found["log_loss"].high) == pytest.approx(percentile_interval(losses))
    mean = PromptBootstrap(prompts, 300, 7).mean(row_losses(p, t))  # products of several threads differ in the last bit
    assert (mean.value, mean.low, mean.high) == pytest.approx(
        tuple(getattr(found["log_loss"], name) for name in ("value", "low", "high"))
    )


def test_the_ece_is_computed_anew_on_each_draw() -> None:
    """By hand on gathered rows; a mean of row values would know nothing of absolute values of bins."""
    p, t = draw(60, 1)
    prompts = np.arange(60) // 2
    found = PromptBootstrap(prompts, 200, 3).scores(p, t)["ece"]
    rng, drawn = np.random.default_rng(3), []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(prompts == k) for k in rng.integers(30, size=30)])
        drawn.append(expected_calibration_error(p[rows], t[rows]))
    low, high = percentile_interval(np.array(drawn) - np.mean(drawn) + found.value)
    assert (found.low, found.high) == pytest.approx((max(0, low), high), abs=1e-12)
    assert np.mean(drawn) > found.value, "resampling adds to an absolute value; else nothing had to be moved"


@pytest.mark.parametrize("sharpen", [1.0, 2.0])
def test_the_ece_interval_covers_what_so_many_rows_give_on_average(sharpen: float) -> None:
    average = np.mean([expected_calibration_error(*draw(200, seed, sharpen)) for seed in range(1000, 1400)])
    covered = 0
    for seed in range(100):
        p, t = draw(200, seed, sharpen)
        interval = PromptBootstrap(np.arange(200), 200, seed).scores(p, t)["ece"]
        assert interval.low is not None and interval.high is not None
        assert interval.low <= interval.value <= interval.high
        covered += interval.low <= average <= interval.high
    assert covered >= 88


def test_rows_of_one_prompt_have_no_interval() -> None:
    p, t = draw(5, 0)
    found = PromptBootstrap(np.zeros(5), 100, 0).scores(p, t)
    assert all(interval.low is None and interval.high is None for interval in found.values())
    assert found["log_loss"].value == pytest.approx(row_losses(p, t).mean())


def test_of_some_rows_it_draws_their_prompts_only() -> None:
    p, t = draw(90, 4)
    prompts, rows = np.arange(90) // 3, np.arange(90) % 2 == 0
    part = PromptBootstrap(prompts, 150, 1).of(rows).scores(p[rows], t[rows])
    assert part == PromptBootstrap(prompts[rows], 150, 1).scores(p[rows], t[rows])
