"""Batches by token budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arena_distill.data.batching import padded_length, token_budget_batches
from arena_distill.runtime.errors import SettingsError

lengths = st.lists(st.integers(0, 300), max_size=200).map(lambda values: np.array(values, dtype=np.int64))
budgets = st.integers(1, 2000)
limits = st.integers(0, 9)
multiples = st.integers(1, 16)


@given(lengths, budgets, limits, multiples)
def test_each_row_stands_in_exactly_one_batch(rows: np.ndarray, budget: int, most: int, multiple: int) -> None:
    batches = token_budget_batches(rows, budget, max_rows=most, multiple_of=multiple)
    assert sorted(np.concatenate([np.zeros(0, int), *batches])) == list(range(len(rows)))
    assert all(len(batch) for batch in batches)


@given(lengths, budgets, limits, multiples)
def test_padded_batch_stays_within_the_budget_unless_it_is_one_row(
    rows: np.ndarray, budget: int, most: int, multiple: int
) -> None:
    for batch in token_budget_batches(rows, budget, max_rows=most, multiple_of=multiple):
        tokens = len(batch) * padded_length(rows[batch], multiple).max()
        assert tokens <= budget or len(batch) == 1
        assert not most or len(batch) <= most


@given(lengths, budgets)
def test_longest_rows_come_first(rows: np.ndarray, budget: int) -> None:
    order = np.concatenate([np.zeros(0, int), *token_budget_batches(rows, budget)])
    assert (np.diff(rows[order]) <= 0).all()


@given(lengths, budgets, limits, multiples)
def test_results_scattered_by_batch_are_in_input_order(rows: np.ndarray, budget: int, most: int, multiple: int) -> None:
    out = np.full(len(rows), -1)
    for batch in token_budget_batches(rows, budget, max_rows=most, multiple_of=multiple):
        out[batch] = rows[batch] * 2
    np.testing.assert_array_equal(out, rows * 2)


@given(lengths, budgets, multiples)
def test_a_batch_is_closed_only_when_the_next_row_would_not_fit(rows: np.ndarray, budget: int, multiple: int) -> None:
    for batch in token_budget_batches(rows, budget, multiple_of=multiple)[:-1]:
        assert (len(batch) + 1) * max(1, padded_length(rows[batch], multiple).max()) > budget


@given(st.integers(0, 10_000), multiples)
def test_padded_length_is_the_next_multiple(length: int, multiple: int) -> None:
    padded = int(padded_length(np.array([length]), multiple)[0])
    assert padded % multiple == 0
    assert length <= padded < length + multiple


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"max_rows": -1}, {"multiple_of": 0}])
def test_bad_bounds_are_settings_errors(bad: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        token_budget_batches(np.array([1]), **{"max_tokens": 8, **bad})
