"""Students side by side on one test file: scores with bootstrap intervals, and paired differences. NumPy only.

The bootstrap draws whole clusters (rows that share a prompt), since such rows are not independent: drawing rows would
give intervals that are too narrow. Every line is scored on the same draws, so differences are paired (Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", sections 8.3 and 13.3: percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.evaluation.metrics import EPSILON, row_gaps, score

LEVEL = 0.95
_DRAWN_AT_ONCE = 4_000_000  # cluster counts held in memory at a time: 32 MB

Prediction = np.ndarray
"""Calibrated probabilities of one student, float64 ``[V, N, 3]``: one view, or (A, B) and (B, A) put back to A, B, tie.
Its verdict is the mean over the views."""


@dataclass(frozen=True)
class Estimate:
    """A mean over the test rows, with the ends of its percentile interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Line:
    """What one line of the table is about: a model, or several whose figures are averaged.

    Args:
        name: as printed.
        runs: of each run the predictions whose figures are averaged. All runs have equally many.
        rows_per_second: mean speed; None where nothing was timed.
        star: whether the name is marked with a ``*``.
    """

    name: str
    runs: Sequence[Sequence[Prediction]]
    rows_per_second: float | None = None
    star: bool = False

    @property
    def predictions(self) -> list[Prediction]:
        """Those of all runs."""
        return [prediction for run in self.runs for prediction in run]

    def run_losses(self, targets: np.ndarray) -> np.ndarray:
        """Loss of each row, averaged over each run's predictions; float64 ``[runs, N]``."""
        return np.stack([np.mean([row_losses(p.mean(axis=0), targets) for p in run], axis=0) for run in self.runs])


@dataclass(frozen=True)
class Figures:
    """One line of the table. ``expected`` is the cross entropy against the true probabilities, where known."""

    name: str
    log_loss: Estimate
    accuracy: float
    ece: float
    brier: float
    swap_gap: float | None
    rows_per_second: float | None
    expected: Estimate | None
    runs: int
    star: bool = False


@dataclass(frozen=True)
class Difference:
    """``first`` minus ``second`` on the same rows and the same draws.

    ``pairs`` counts the pairs of runs, where both have equally many, and ``same_sign`` those whose difference in log
    loss has the sign of the mean difference; None otherwise.
    """

    first: str
    second: str
    log_loss: Estimate
    expected: Estimate | None
    same_sign: int | None
    pairs: int | None


def row_losses(probabilities: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """Cross entropy of each row in nats, float64 ``[N]``; the mean of it is ``metrics.kaggle_log_loss``."""
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if p.ndim != 2 or p.shape != t.shape:
        raise ValueError(f"probabilities {list(p.shape)} and targets {list(t.shape)} must have one shape [N, 3]")
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    clipped /= clipped.sum(axis=1, keepdims=True)
    return np.asarray(-(t * np.log(clipped)).sum(axis=1))


def cluster_bootstrap(values: ArrayLike, clusters: ArrayLike, resamples: int, seed: int) -> np.ndarray:
    """Means over rows of clusters drawn with replacement, as many as there are.

    Args:
        values: one or more figures of each row, ``[K, N]``; all are averaged over the same draws.
        clusters: key of each row's cluster, any sortable dtype, ``[N]``.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        float64 ``[resamples, K]``: sums over the drawn rows by their number, which differs from draw to draw.

    Raises:
        ValueError: shapes do not agree, a value is not finite, or there are fewer than two clusters.
    """
    columns = np.asarray(values, dtype=np.float64)
    keys, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if columns.ndim != 2 or columns.shape[1] != len(cluster):
        raise ValueError(f"values must have shape [K, {len(cluster)}], not {list(columns.shape)}")
    if not np.isfinite(columns).all():
        raise ValueError("values must be finite")
    count = len(keys)
    if count < 2 or resamples < 1:
        raise ValueError(f"a bootstrap needs two clusters and one resample, not {count} and {resamples}")
    sums = np.stack([np.bincount(cluster, weights=column, minlength=count) for column in columns], axis=1)
    sums_and_sizes = np.column_stack([sums, np.bincount(cluster, minlength=count)])
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // count)
    means = []
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        drawn = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)
        totals = times.astype(np.float64) @ sums_and_sizes
        means.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(means)


def percentile_interval(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The middle ``level`` of the draws ``[resamples]``."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ensemble(members: Sequence[Prediction]) -> Prediction:
    """The mean of the members' calibrated probabilities, view by view; ``[V, N, 3]``."""
    return np.asarray(np.mean(np.stack(members), axis=0))


class Comparison:
    """Lines scored on the same rows with the same draws.

    Args:
        lines: in the order to show; names differ.
        targets: votes ``[N, 3]``, hard or soft.
        clusters: key of each row's cluster (its normalised prompt), ``[N]``.
        truth: probabilities ``[N, 3]`` that the votes were drawn from, where known.
        resamples: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: a name occurs twice, a shape does not agree, or there are fewer than two clusters.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        targets: np.ndarray,
        clusters: np.ndarray,
        truth: np.ndarray | None = None,
        *,
        resamples: int = 2000,
        seed: int = 42,
    ) -> None:
        self.lines, self.targets, self.clusters, self.truth = list(lines), targets, clusters, truth
        self.resamples, self.seed = resamples, seed
        self._place = {line.name: place for place, line in enumerate(self.lines)}
        if len(self._place) < len(self.lines):
            raise ValueError(f"a name stands for two lines: {[line.name for line in self.lines]}")

    @cached_property
    def figures(self) -> list[Figures]:
        """Of each line, in order."""
        return [self._figures_of(line) for line in self.lines]

    def difference(self, first: str, second: str) -> Difference:
        """The line named ``first`` minus the one named ``second``."""
        runs = [self._run_losses[self._place[name]].mean(axis=1) for name in (first, second)]
        same_sign = pairs = None
        if len(runs[0]) == len(runs[1]):
            each = runs[0] - runs[1]
            pairs = len(each)
            same_sign = int((np.sign(each) == np.sign(each.mean())).sum())
        return Difference(first, second, *self._estimates(first, second), same_sign, pairs)

    def _figures_of(self, line: Line) -> Figures:
        scores = [score(p.mean(axis=0), self.targets) for p in line.predictions]
        gaps = [float(row_gaps(p[0], p[1]).mean()) for p in line.predictions if len(p) == 2]
        log_loss, expected = self._estimates(line.name)
        return Figures(
            name=line.name,
            log_loss=log_loss,
            accuracy=float(np.mean([s.accuracy for s in scores])),
            ece=float(np.mean([s.ece for s in scores])),
            brier=float(np.mean([s.brier for s in scores])),
            swap_gap=float(np.mean(gaps)) if len(gaps) == len(scores) else None,
            rows_per_second=line.rows_per_second,
            expected=expected,
            runs=len(line.runs),
            star=line.star,
        )

    def _estimates(self, name: str, minus: str | None = None) -> tuple[Estimate, Estimate | None]:
        """Log loss, and expected loss where the truth is known, of a line or of its difference to another."""
        means, draws = self._draws

        def estimate(offset: int) -> Estimate:
            mean, drawn = means[offset + self._place[name]], draws[:, offset + self._place[name]]
            if minus is not None:
                mean, drawn = mean - means[offset + self._place[minus]], drawn - draws[:, offset + self._place[minus]]
            return Estimate(float(mean), *percentile_interval(drawn))

        return estimate(0), None if self.truth is None else estimate(len(self.lines))

    @cached_property
    def _run_losses(self) -> list[np.ndarray]:
        return [line.run_losses(self.targets) for line in self.lines]

    @cached_property
    def _draws(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of each column ``[K]`` and its draws ``[resamples, K]``: the lines' log losses, then the expected."""
        columns = [losses.mean(axis=0) for losses in self._run_losses]
        if self.truth is not None:
            columns += [line.run_losses(self.truth).mean(axis=0) for line in self.lines]
        values = np.stack(columns)
        return values.mean(axis=1), cluster_bootstrap(values, self.clusters, self.resamples, self.seed)


def format_figures(figures: Sequence[Figures], title: str) -> str:
    """The main table as aligned plain text under ``title``; a figure that a line lacks shows as ``-``."""
    columns: list[tuple[str, Callable[[Figures], str]]] = [
        ("log loss [95 %]", lambda f: _with_interval(f.log_loss, "")),
        ("accuracy", lambda f: _number(f.accuracy)),
        ("ECE", lambda f: _number(f.ece)),
        ("Brier", lambda f: _number(f.brier)),
        ("swap gap", lambda f: _number(f.swap_gap)),
        ("rows/s", lambda f: "-" if f.rows_per_second is None else f"{f.rows_per_second:,.1f}"),
    ]
    if any(f.expected for f in figures):
        columns.append(("expected", lambda f: _number(f.expected.value if f.expected else None)))
    lines = [["model", *(heading for heading, _ in columns)]]
    lines += [[f.name + ("*" if f.star else ""), *(cell(f) for _, cell in columns)] for f in figures]
    return "\n".join([title, *aligned(lines)])


def format_differences(differences: Sequence[Difference], title: str) -> str:
    """Table of paired differences under ``title``, then one sentence for each."""
    columns: list[tuple[str, Callable[[Difference], str]]] = [
        ("log loss [95 %]", lambda d: _with_interval(d.log_loss, "+"))
    ]
    if any(d.expected for d in differences):
        columns.append(("expected [95 %]", lambda d: _with_interval(d.expected, "+")))
    if any((d.pairs or 0) > 1 for d in differences):
        columns.append(("same sign", lambda d: f"{d.same_sign} of {d.pairs}" if (d.pairs or 0) > 1 else "-"))
    lines = [["difference", *(heading for heading, _ in columns)]]
    lines += [[f"{d.first} minus {d.second}", *(cell(d) for _, cell in columns)] for d in differences]
    return "\n".join([title, *aligned(lines), *map(in_words, differences)])


def in_words(difference: Difference) -> str:
    """Which of the two is lower, and whether the intervals exclude 0."""
    measures = [("log loss", difference.log_loss), ("expected loss", difference.expected)]
    said = [_verdict(name, estimate) for name, estimate in measures if estimate is not None]
    return f"{difference.first} against {difference.second}: {'; '.join(said)}."


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells as columns of text: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))])
        for name, *numbers in lines
    ]


def _verdict(name: str, estimate: Estimate) -> str:
    if estimate.value == 0:
        return f"{name} is equal"
    words = f"{name} is {'lower' if estimate.value < 0 else 'higher'} by {abs(estimate.value):.4f}"
    return words + (", the interval excludes 0" if estimate.excludes_zero else ", but the interval includes 0")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _with_interval(estimate: Estimate | None, sign: str) -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{number:{sign}.4f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
