"""Splits of one fold: the other folds train, and of its own prompts half choose the checkpoint and half only score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arena_distill.data.folds import make_folds
from arena_distill.data.identity import prompt_hashes, row_hashes, rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import shares_prompt
from arena_distill.data.records import SCHEMA, Rows
from arena_distill.data.splits import CALIBRATION, HOLDOUT, TRAIN, cv_split, load_split, scoring_half
from arena_distill.runtime.errors import EXIT_BAD_INPUT, DataError
from tests.conftest import SAMPLE

FILE = SAMPLE / "train.csv"
TURNS = pa.list_(pa.string())


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load_labelled(FILE).rows


def rows_of(prompts: list[str], labels: list[int]) -> Rows:
    count = len(prompts)
    texts = {name: pa.array([[f"{name} {n}"] for n in range(count)], TURNS) for name in ("response_a", "response_b")}
    texts = {"prompt": pa.array([[prompt] for prompt in prompts], TURNS), **texts}
    columns: dict[str, Any] = {
        "id": pa.array([str(n) for n in range(count)]),
        **texts,
        "label": pa.array(labels, pa.int8()),
        "target": pa.nulls(count, SCHEMA.field("target").type),
        "source": pa.array(["x"] * count),
        "base_idx": pa.array(np.arange(count)),
        "row_hash": row_hashes(texts),
        "prompt_hash": prompt_hashes(texts["prompt"]),
    }
    return pa.table(columns, schema=SCHEMA)


def assert_sound(part: np.ndarray, rows: Rows) -> None:
    """Each row in one part, and each prompt too."""
    assert part.shape == (len(rows),) and set(part.tolist()) <= {TRAIN, CALIBRATION, HOLDOUT}
    places = set(zip(rows["prompt_hash"].to_pylist(), part.tolist(), strict=True))
    assert len(places) == len(set(rows["prompt_hash"].to_pylist()))


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("n_folds", [2, 5])
def test_the_folds_are_those_of_step_2_and_every_row_is_held_out_once(n_folds: int, seed: int, rows: Rows) -> None:
    fold = make_folds(rows, n_folds, seed).fold
    for number in range(n_folds):
        split = cv_split(rows, n_folds, number, seed, FILE)
        np.testing.assert_array_equal(split.part != TRAIN, fold == number)
        assert_sound(split.part, rows)
        parts = [split.select(rows, part) for part in (TRAIN, CALIBRATION, HOLDOUT)]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not shares_prompt(parts[one], parts[other]).any()


@pytest.mark.parametrize("fold", range(5))
def test_the_two_halves_are_alike_in_size_and_in_every_label(fold: int, rows: Rows) -> None:
    split = cv_split(rows, 5, fold, 42, FILE)
    labels = rows["label"].to_numpy()
    counts = np.array([np.bincount(labels[split.part == part], minlength=3) for part in (CALIBRATION, HOLDOUT)])
    largest = int(np.bincount(np.unique(rows["prompt_hash"].to_numpy(), return_inverse=True)[1]).max())
    assert (np.abs(counts[0] - counts[1]) <= 1 + largest).all(), counts
    assert counts.sum() == (split.part != TRAIN).sum() > 250


@pytest.mark.parametrize("fold", range(5))
def test_the_halves_are_those_that_step_5_makes_of_its_held_out_rows(fold: int, rows: Rows) -> None:
    split = cv_split(rows, 5, fold, 42, FILE)
    held_out = rows.take(np.flatnonzero(make_folds(rows, 5, 42).fold == fold))
    scoring = scoring_half(held_out, 42, FILE)
    assert held_out.filter(pa.array(scoring)).equals(split.select(rows, HOLDOUT))
    assert held_out.filter(pa.array(~scoring)).equals(split.select(rows, CALIBRATION))


def test_a_split_is_the_same_again_and_another_with_another_seed_or_fold(rows: Rows) -> None:
    one = cv_split(rows, 5, 1, 42, FILE)
    np.testing.assert_array_equal(one.part, cv_split(rows, 5, 1, 42, FILE).part)
    for other in (cv_split(rows, 5, 1, 43, FILE), cv_split(rows, 5, 2, 42, FILE)):
        assert (one.part != other.part).mean() > 0.2


def test_a_cv_split_goes_through_its_file(rows: Rows, tmp_path: Path) -> None:
    split = cv_split(rows, 5, 3, 42, FILE)
    split.save(tmp_path)
    again = load_split(tmp_path, rows, FILE)
    np.testing.assert_array_equal(again.part, split.part)
    assert again.rows_sha256 == rows_sha256(rows) == split.rows_sha256


def test_votes_of_the_scoring_half_turned_soft_move_no_row(rows: Rows) -> None:
    """Only the hard label stratifies: soft targets, which step 5's files may carry, change no division."""
    soft = pa.array([[0.2, 0.3, 0.5]] * len(rows), SCHEMA.field("target").type)
    changed = rows.set_column(SCHEMA.get_field_index("target"), SCHEMA.field("target"), soft)
    np.testing.assert_array_equal(cv_split(rows, 5, 0, 42, FILE).part, cv_split(changed, 5, 0, 42, FILE).part)


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[Rows, int]:
    """Rows with any grouping of prompts, and a number of folds."""
    groups = draw(st.lists(st.integers(0, 12), min_size=1, max_size=60))
    labels = draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups)))
    return rows_of([f"p{group}" for group in groups], labels), draw(st.integers(2, 6))


@settings(deadline=None, max_examples=150)
@given(grouped_rows(), st.integers(0, 5), st.integers(0, 2**31))
def test_any_grouping_gives_a_sound_split_or_is_refused(data: tuple[Rows, int], fold: int, seed: int) -> None:
    rows, n_folds = data
    fold %= n_folds
    prompts = rows["prompt_hash"].to_numpy()
    distinct = len(np.unique(prompts))
    try:
        split = cv_split(rows, n_folds, fold, seed, FILE)
    except DataError:
        held_out = prompts[make_folds(rows, n_folds, seed).fold == fold] if distinct >= n_folds else prompts[:0]
        assert len(np.unique(held_out)) < 2
        return
    assert_sound(split.part, rows)
    assert set(split.part.tolist()) == {TRAIN, CALIBRATION, HOLDOUT}
    np.testing.assert_array_equal(split.part != TRAIN, make_folds(rows, n_folds, seed).fold == fold)


def refusal(call: Any, *arguments: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert caught.value.file == "votes.csv" and caught.value.hint
    return caught.value


def test_fewer_prompts_than_folds_are_refused_with_both_numbers() -> None:
    rows = rows_of(["a", "b", "A ", "b"], [0, 1, 2, 0])
    error = refusal(cv_split, rows, 3, 0, 42, Path("votes.csv"))
    assert "2 distinct prompts for 3 folds" in error.problem


def test_a_fold_with_a_single_prompt_is_refused() -> None:
    rows = rows_of(["a", "b", "c", "a", "b", "c"], [0, 1, 2, 0, 1, 2])
    error = refusal(cv_split, rows, 3, 1, 42, Path("votes.csv"))
    assert "single prompt" in error.problem and "fewer folds" in error.hint


@pytest.mark.parametrize("prompts", [["a"], ["a", "A", " a "]], ids=["one row", "three rows"])
def test_held_out_rows_of_one_prompt_cannot_be_halved(prompts: list[str]) -> None:
    rows = rows_of(prompts, [0, 1, 2][: len(prompts)])
    assert "single prompt" in refusal(scoring_half, rows, 42, Path("votes.csv")).problem


def test_two_prompts_are_one_for_each_half() -> None:
    rows = rows_of(["a", "a", "b", "a"], [0, 1, 2, 2])
    assert sorted(scoring_half(rows, 42, FILE)[[0, 2]].tolist()) == [False, True]
    assert len(set(scoring_half(rows, 42, FILE)[[0, 1, 3]].tolist())) == 1
