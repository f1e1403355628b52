"""Bootstrap intervals and paired differences, against brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from arena_distill.evaluation import comparison
from arena_distill.evaluation.comparison import (
    Comparison,
    Line,
    cluster_bootstrap,
    ensemble,
    format_differences,
    format_figures,
    percentile_interval,
    row_losses,
)
from arena_distill.evaluation.metrics import kaggle_log_loss, score


def draw_probabilities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.dirichlet([1.0, 1.0, 1.0], size=shape)


def draw_votes(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    return np.eye(3)[[rng.choice(3, p=p) for p in probabilities]]


def test_row_losses_average_to_the_kaggle_log_loss_also_where_it_clips() -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate([draw_probabilities(rng, 500), np.eye(3), [[1.0, 1e-300, 0.0], [2.0, 3.0, 5.0]]])
    hard, soft = np.eye(3)[rng.integers(3, size=len(p))], draw_probabilities(rng, len(p))
    for targets in (hard, soft):
        assert row_losses(p, targets).mean() == pytest.approx(kaggle_log_loss(p, targets), rel=0, abs=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        row_losses(p, hard[1:])


@pytest.mark.parametrize("at_once", [10**9, 50])
def test_the_bootstrap_equals_rows_gathered_by_hand(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(comparison, "_DRAWN_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.array(["d", "a", "c", "b", "e", "f", "g"]), [1, 5, 2, 3, 1, 1, 4])
    order = rng.permutation(len(clusters))
    clusters, values = clusters[order], rng.normal(size=(2, len(clusters)))
    got = cluster_bootstrap(values, clusters, 40, seed=3)

    keys, by_hand = sorted(set(clusters)), []
    draws = np.random.default_rng(3)
    for _ in range(40):
        drawn = [keys[number] for number in draws.integers(len(keys), size=len(keys))]
        rows = np.concatenate([np.flatnonzero(clusters == key) for key in drawn])
        by_hand.append(values[:, rows].mean(axis=1))
    np.testing.assert_allclose(got, by_hand, rtol=0, atol=1e-12)
    assert not np.array_equal(got, cluster_bootstrap(values, clusters, 40, seed=4))


def test_the_interval_is_as_wide_as_theory_says_for_rows_that_are_independent() -> None:
    values = np.random.default_rng(2).normal(size=1000)
    low, high = percentile_interval(cluster_bootstrap(values[None], np.arange(1000), 4000, seed=0)[:, 0])
    error = values.std() / np.sqrt(1000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * error)


def test_rows_that_repeat_widen_the_interval_of_prompts_but_not_that_of_rows() -> None:
    values = np.random.default_rng(3).normal(size=200)
    repeated, prompts = np.repeat(values, 9), np.repeat(np.arange(200), 9)

    def width(v: np.ndarray, clusters: np.ndarray) -> float:
        low, high = percentile_interval(cluster_bootstrap(v[None], clusters, 3000, seed=0)[:, 0])
        return high - low

    # Nine copies of a row say no more than one: the width must stay; by rows it would fall by sqrt(9).
    assert width(repeated, prompts) == pytest.approx(width(values, np.arange(200)), rel=1e-9)
    assert width(repeated, np.arange(len(repeated))) == pytest.approx(width(repeated, prompts) / 3, rel=0.1)


def test_the_paired_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    true_difference, trials = 0.05, 300
    covered = {"prompts": 0, "rows": 0}
    for trial in range(trials):
        sizes = rng.integers(1, 6, size=120)
        clusters = np.repeat(np.arange(120), sizes)
        hard = rng.normal(size=120)[clusters]  # a hard row is hard for both: only a paired interval is this narrow
        own = rng.normal(0, 0.3, size=120)[clusters] + rng.normal(0, 0.1, size=len(clusters))
        a = 1 + hard
        values = np.stack([a + true_difference + own, a])
        for name, keys in (("prompts", clusters), ("rows", np.arange(len(clusters)))):
            draws = cluster_bootstrap(values, keys, 300, seed=trial)
            low, high = percentile_interval(draws[:, 0] - draws[:, 1])
            covered[name] += low <= true_difference <= high
    assert 0.91 <= covered["prompts"] / trials <= 0.98
    assert covered["rows"] / trials < 0.85, "rows with one prompt are not independent, and the data must show it"


def test_figures_are_means_over_runs_and_the_ensemble_is_scored_as_one() -> None:
    rng = np.random.default_rng(5)
    members = draw_probabilities(rng, 2, 3, 2, 60)  # runs, folds, views, rows
    truth = draw_probabilities(rng, 60)
    votes, prompts = draw_votes(rng, truth), rng.integers(25, size=60)
    runs = [list(run) for run in members]
    together = [[ensemble(run)] for run in runs]
    lines = [Line("mean", runs, 10.0), Line("ensemble", together, 3.0), Line("truth", [[truth[None]]])]
    mean, whole, best = Comparison(lines, votes, prompts, truth, resamples=200, seed=1).figures

    singles = [score(p.mean(axis=0), votes) for run in runs for p in run]
    for name in ("accuracy", "ece", "brier"):
        assert getattr(mean, name) == pytest.approx(np.mean([getattr(s, name) for s in singles]), abs=1e-12)
    assert mean.log_loss.value == pytest.approx(np.mean([s.log_loss for s in singles]), abs=1e-12)
    assert mean.swap_gap == pytest.approx(np.abs(members[:, :, 0] - members[:, :, 1]).sum(axis=-1).mean(), abs=1e-12)
    averaged = members.mean(axis=(1, 2))
    assert whole.log_loss.value == pytest.approx(np.mean([kaggle_log_loss(p, votes) for p in averaged]), abs=1e-12)
    views = members.mean(axis=1)
    assert whole.swap_gap == pytest.approx(np.abs(views[:, 0] - views[:, 1]).sum(axis=-1).mean(), abs=1e-12)
    assert whole.expected is not None and best.expected is not None
    assert whole.expected.value == pytest.approx(np.mean([kaggle_log_loss(p, truth) for p in averaged]), abs=1e-12)
    assert best.expected.value == pytest.approx(-(truth * np.log(truth)).sum(axis=1).mean(), abs=1e-12)
    assert best.expected.value < whole.expected.value and best.swap_gap is None
    assert mean.log_loss.low < mean.log_loss.value < mean.log_loss.high


def test_differences_are_paired_and_count_the_pairs_of_runs_with_one_sign() -> None:
    rng = np.random.default_rng(6)
    truth = draw_probabilities(rng, 400)
    votes, prompts = draw_votes(rng, truth), np.arange(400)

    def model(doubt: float) -> np.ndarray:
        return ((1 - doubt) * truth + doubt / 3)[None]

    good, bad = [[model(0.1)], [model(0.2)], [model(0.7)]], [[model(0.5)], [model(0.55)], [model(0.6)]]
    lines = [Line("bad", bad), Line("good", good), Line("one", [[model(0.9)]])]
    whole = Comparison(lines, votes, prompts, truth, resamples=500, seed=2)
    difference = whole.difference("good", "bad")
    losses = [[kaggle_log_loss(run[0][0], votes) for run in runs] for runs in (good, bad)]
    assert difference.log_loss.value == pytest.approx(np.mean(losses[0]) - np.mean(losses[1]), abs=1e-12)
    assert (difference.pairs, difference.same_sign) == (3, 2)
    first, second = (figures.log_loss for figures in reversed(whole.figures[:2]))
    unpaired = np.hypot(first.high - first.low, second.high - second.low)
    assert difference.log_loss.high - difference.log_loss.low < unpaired / 2
    assert difference.expected is not None and difference.expected.value < 0
    other = whole.difference("bad", "good")
    assert other.log_loss.low == pytest.approx(-difference.log_loss.high, abs=1e-9)
    assert whole.difference("one", "bad").pairs is None
    assert whole.difference("one", "one").log_loss.value == 0

    text = format_differences([difference, whole.difference("one", "bad"), whole.difference("one", "one")], "T")
    assert "2 of 3" in text
    said = next(line for line in text.splitlines() if line.startswith("good against bad: "))
    assert f"log loss is lower by {-difference.log_loss.value:.4f}" in said
    assert "excludes 0" in said and "expected loss is lower by" in said
    assert "one against bad: log loss is higher by" in text and "one against one: log loss is equal" in text


def test_an_interval_that_includes_zero_is_said_to() -> None:
    rng = np.random.default_rng(7)
    p, q = draw_probabilities(rng, 1, 30), draw_probabilities(rng, 1, 30)
    lines = [Line("p", [[p]]), Line("q", [[q]])]
    difference = Comparison(lines, np.full((30, 3), 1 / 3), np.arange(30), resamples=200).difference("p", "q")
    assert difference.expected is None and not difference.log_loss.excludes_zero
    assert "but the interval includes 0" in format_differences([difference], "T")


def test_the_table_is_aligned_and_shows_a_dash_for_what_is_not_known() -> None:
    p = np.full((1, 9, 3), 1 / 3)
    lines = [Line("a student with a long name", [[np.tile(p, (2, 1, 1))]], 1234.5, star=True), Line("prior", [[p]])]
    figures = Comparison(lines, np.tile(np.eye(3), (3, 1)), np.arange(9), resamples=100).figures
    title, header, *rest = format_figures(figures, "Title").splitlines()
    assert title == "Title" and "expected" not in header
    assert rest[0].split()[:6] == ["a", "student", "with", "a", "long", "name*"]
    assert rest[0].split()[6:] == ["1.0986", "[1.0986,", "1.0986]", "0.3333", "0.0000", "0.6667", "0.0000", "1,234.5"]
    assert rest[1].split() == ["prior", "1.0986", "[1.0986,", "1.0986]", "0.3333", "0.0000", "0.6667", "-", "-"]
    assert len({len(line) for line in (header, *rest)}) == 1


def test_what_cannot_be_resampled_or_told_apart_is_refused() -> None:
    p = np.full((1, 4, 3), 1 / 3)
    with pytest.raises(ValueError, match="two clusters"):
        cluster_bootstrap(np.ones((1, 4)), np.zeros(4), 100, seed=0)
    with pytest.raises(ValueError, match=r"shape \[K, 4\]"):
        cluster_bootstrap(np.ones((1, 3)), np.arange(4), 100, seed=0)
    with pytest.raises(ValueError, match="finite"):
        cluster_bootstrap(np.full((1, 4), np.nan), np.arange(4), 100, seed=0)
    with pytest.raises(ValueError, match="two lines"):
        Comparison([Line("a", [[p]]), Line("a", [[p]])], p[0], np.arange(4))
