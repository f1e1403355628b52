"""Scores with 95 % bootstrap intervals over prompts. NumPy float64; see ``comparison.cluster_bootstrap``."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from arena_distill.evaluation.comparison import cluster_bootstrap, percentile_interval, row_losses
from arena_distill.evaluation.metrics import ECE_BINS, confidence_bin, score, top_label


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval; None where all rows share one prompt, so that there is none."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PromptBootstrap:
    """How figures of N rows are resampled: whole prompts with replacement, as many as there are.

    Args:
        prompts: key of each row's prompt, ``[N]``.
        resamples: number of draws.
        seed: of the draws; figures of the same rows are all of the same draws.
    """

    prompts: np.ndarray
    resamples: int
    seed: int

    def of(self, rows: np.ndarray) -> PromptBootstrap:
        """The same for some of the rows: a mask or row numbers."""
        return PromptBootstrap(self.prompts[rows], self.resamples, self.seed)

    def mean(self, values: np.ndarray) -> Interval:
        """Mean of one figure of each row, ``[N]``."""
        draws = self._draws(values[None])
        value = float(values.mean())
        return Interval(value, None, None) if draws is None else Interval(value, *percentile_interval(draws[:, 0]))

    def scores(self, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Interval]:
        """Log loss, accuracy, Brier's score and ECE of ``[N, 3]`` against ``[N, 3]``, all on the same draws."""
        scores = score(probabilities, targets)
        confidence, hit = top_label(probabilities, targets)
        columns = [
            row_losses(probabilities, targets),
            (probabilities.argmax(axis=1) == targets.argmax(axis=1)).astype(np.float64),
            ((probabilities - targets) ** 2).sum(axis=1),
            *((confidence - hit) * (confidence_bin(confidence) == k) for k in range(ECE_BINS)),
        ]
        draws = self._draws(np.stack(columns))
        ends: dict[str, tuple[float, float] | tuple[None, None]]
        if draws is None:
            ends = dict.fromkeys(("log_loss", "accuracy", "brier", "ece"), (None, None))
        else:
            ends = {n: percentile_interval(draws[:, k]) for k, n in enumerate(("log_loss", "accuracy", "brier"))}
            ends["ece"] = _ece_interval(np.abs(draws[:, 3:]).sum(axis=1), scores.ece)
        return {name: Interval(getattr(scores, name), *ends[name]) for name in ends}

    def _draws(self, values: np.ndarray) -> np.ndarray | None:
        if len(np.unique(self.prompts)) < 2:
            return None
        return cluster_bootstrap(values, self.prompts, self.resamples, self.seed)


def _ece_interval(draws: np.ndarray, value: float) -> tuple[float, float]:
    """Interval of an ECE that was computed anew on each draw.

    A bin's gap is an absolute value, so resampling adds to it: the draws lie above the figure that they are draws of,
    and may all do. They are moved down by as much as their mean is too high (Efron and Tibshirani 1993, section 10.2).
    """
    low, high = percentile_interval(draws - (draws.mean() - value))
    return max(0.0, low), high
