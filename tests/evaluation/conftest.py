from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from arena_distill.data.records import SCHEMA, Rows

Turns = Sequence[str | None]
Votes = Sequence[int | Sequence[float]]


def _make_rows(answers: Sequence[tuple[Turns, Turns, Turns]], votes: Votes) -> Rows:
    """A canonical table of (prompt, answer A, answer B); a vote is a class or three probabilities."""
    hard = [vote if isinstance(vote, int) else None for vote in votes]
    soft = [None if isinstance(vote, int) else list(vote) for vote in votes]
    prompts, first, second = zip(*answers, strict=True)
    return pa.table(
        {
            "id": [f"row-{index}" for index in range(len(answers))],
            "prompt": [list(turns) for turns in prompts],
            "response_a": [list(turns) for turns in first],
            "response_b": [list(turns) for turns in second],
            "label": hard,
            "target": soft,
            "source": ["test"] * len(answers),
            "base_idx": list(range(len(answers))),
            "row_hash": [f"{index:016x}" for index in range(len(answers))],
            "prompt_hash": [zlib.crc32(repr(turns).encode()) for turns in prompts],
        },
        schema=SCHEMA,
    )


@pytest.fixture
def make_rows() -> Callable[[Sequence[tuple[Turns, Turns, Turns]], Votes], Rows]:
    return _make_rows


@pytest.fixture
def length_decides() -> Callable[[int, int], Rows]:
    """Rows where the longer answer mostly wins and near-equal lengths mostly tie."""

    def build(count: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        words = np.array(["sun", "moon", "rain", "wind", "snow", "hail", "mist", "frost"])
        texts, votes = [], []
        for index in range(count):
            a, b = rng.integers(1, 60, size=2)
            lead = np.log(a / b)
            weights = np.exp([2.5 * lead, -2.5 * lead, 0.5])
            votes.append(int(rng.choice(3, p=weights / weights.sum())))
            first, second = ([" ".join(rng.choice(words, size=size))] for size in (a, b))
            texts.append(([f"Question {index // 2}?"], first, second))
        return _make_rows(texts, votes)

    return build
