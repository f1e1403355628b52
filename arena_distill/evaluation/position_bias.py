"""How much a judge's verdict depends on which answer it is shown first. NumPy float64; needs no votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arena_distill.data.prompts import View
from arena_distill.data.records import CLASSES
from arena_distill.evaluation.intervals import PromptBootstrap
from arena_distill.evaluation.metrics import row_gaps

A, B, TIE = range(len(CLASSES))


def position_bias(
    views: Sequence[View], probabilities: np.ndarray, bootstrap: PromptBootstrap
) -> dict[str, Any] | None:
    """The two orders of every row against each other.

    Args:
        views: of length limits and orders; lengths without both orders are left out.
        probabilities: of each view, ``[V, N, 3]``, swapped views put back to A, B, tie.
        bootstrap: of the N rows.

    Returns:
        None where no length was scored in both orders. Else ``lengths`` (tokens; their probabilities are averaged
        within each order) and, each with its interval, means over rows: ``swap_gap`` (L1 distance of the two orders,
        0 to 2), ``flipped_verdicts`` (share of rows whose largest class changes), ``flipped_winners`` (share where one
        answer's win becomes the other's), ``first_answer_probability`` (given to whichever answer stands first, over
        both orders) and ``first_position_preference`` (that minus the probability given to the second, 0 without
        bias). ``unbiased_first_answer_probability`` is half of what is not given to ties.
    """
    place = {(view.max_length, view.swap): v for v, view in enumerate(views)}
    lengths = [length for length, swap in place if not swap and (length, True) in place]
    if not lengths:
        return None
    shown, swapped = (probabilities[[place[length, swap] for length in lengths]].mean(axis=0) for swap in (False, True))
    verdicts = shown.argmax(axis=1), swapped.argmax(axis=1)
    flipped = verdicts[0] != verdicts[1]
    # Swapped, B stands first.
    first, second = (shown[:, A] + swapped[:, B]) / 2, (shown[:, B] + swapped[:, A]) / 2
    figures = {
        "swap_gap": row_gaps(shown, swapped),
        "flipped_verdicts": flipped.astype(np.float64),
        "flipped_winners": (flipped & (verdicts[0] != TIE) & (verdicts[1] != TIE)).astype(np.float64),
        "first_answer_probability": first,
        "first_position_preference": first - second,
    }
    return {
        "rows": len(shown),
        "lengths": lengths,
        **{name: bootstrap.mean(values).as_dict() for name, values in figures.items()},
        "unbiased_first_answer_probability": float((1 - (shown[:, TIE] + swapped[:, TIE]) / 2).mean() / 2),
    }
