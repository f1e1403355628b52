from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from arena_distill.data.folds import grouped_stratified_folds
from arena_distill.evaluation.ensemble import (
    Space,
    combine,
    cross_fitted_loss,
    equal_weights,
    inverse_loss_weights,
    simplex_weights,
)
from arena_distill.evaluation.metrics import EPSILON, kaggle_log_loss

SPACES: tuple[Space, ...] = ("mean", "log")
spaces = st.sampled_from(SPACES)


def judges(seed: int, count: int, rows: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Members that see the votes' log odds through noise of their own, and votes: ``[M, N, 3]``, ``[N, 3]``."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(rows, 3)) * 1.5
    odds = np.exp(truth)
    votes = np.array([rng.choice(3, p=row / row.sum()) for row in odds])
    noise = rng.uniform(0.2, 2.5, size=(count, 1, 1)) * spread
    seen = np.exp(truth + noise * rng.normal(size=(count, rows, 3)))
    return seen / seen.sum(axis=2, keepdims=True), np.eye(3)[votes]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Any members and targets, with zeros and ones, few rows, equal members, hard and soft votes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, rows = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    p = rng.dirichlet(np.full(3, draw(st.sampled_from([0.01, 0.3, 1.0, 20.0]))), size=(count, rows))
    if draw(st.booleans()):
        p = np.eye(3)[p.argmax(axis=2)]
    if count > 1 and draw(st.booleans()):
        p[1] = p[0]
    hard = draw(st.booleans())
    t = np.eye(3)[rng.integers(0, 3, rows)] if hard else rng.dirichlet(np.ones(3), size=rows)
    return p, t


def reference(members: np.ndarray, weights: np.ndarray, space: Space) -> np.ndarray:
    """Row by row, member by member."""
    out = np.zeros(members.shape[1:])
    for row in range(members.shape[1]):
        if space == "mean":
            for w, member in zip(weights, members, strict=True):
                out[row] += w / sum(weights) * member[row]
        else:
            product = np.ones(3)
            for w, member in zip(weights, members, strict=True):
                product *= np.maximum(member[row], EPSILON) ** (w / sum(weights))
            out[row] = product
        out[row] /= out[row].sum()
    return out


def loss_of(members: np.ndarray, weights: Any, targets: np.ndarray, space: Space) -> float:
    p = np.clip(reference(members, np.asarray(weights), space), EPSILON, 1 - EPSILON)
    return float(-(targets * np.log(p / p.sum(axis=1, keepdims=True))).sum(axis=1).mean())


@given(problems(), spaces, st.integers(0, 1000))
def test_combining_is_the_weighted_mean_of_probabilities_or_of_their_logarithms(
    problem: tuple[np.ndarray, np.ndarray], space: Space, seed: int
) -> None:
    members, _ = problem
    weights = np.random.default_rng(seed).uniform(0.1, 9, size=len(members))
    weights[1::3] = 0
    combined = combine(members, weights, space)
    np.testing.assert_allclose(combined, reference(members, weights, space), atol=1e-12)
    np.testing.assert_allclose(combined.sum(axis=1), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(combine(members, weights * 1e300, space), combined, atol=1e-14)
    order = np.random.default_rng(seed).permutation(len(members))
    np.testing.assert_allclose(combine(members[order], weights[order], space), combined, atol=1e-12)


@given(problems(), spaces)
def test_a_member_alone_is_itself_and_swapping_the_answers_swaps_the_ensemble(
    problem: tuple[np.ndarray, np.ndarray], space: Space
) -> None:
    members, _ = problem
    weights = np.arange(1.0, len(members) + 1)
    np.testing.assert_allclose(combine(members, np.eye(len(members))[-1], space), members[-1], atol=1e-14)
    swapped = combine(members[:, :, [1, 0, 2]], weights, space)
    np.testing.assert_allclose(swapped, combine(members, weights, space)[:, [1, 0, 2]], atol=1e-14)


def test_one_members_zero_does_not_veto_a_class_in_log_space() -> None:
    members = [[[0.0, 0.5, 0.5]], [[1.0, 0.0, 0.0]]]
    combined = combine(members, [1, 1], "log")
    assert np.isfinite(combined).all()
    assert combined[0, 0] > 0.2  # sqrt(eps * 1) against twice sqrt(0.5 * eps)


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=6))
def test_inverse_loss_weights_are_in_proportion_to_one_over_the_loss(losses: list[float]) -> None:
    weights = inverse_loss_weights(losses)
    assert weights.sum() == pytest.approx(1)
    best = int(np.argmin(losses))
    np.testing.assert_allclose(weights / weights[best], losses[best] / np.array(losses), rtol=1e-12, atol=1e-300)


def test_weights_of_known_losses() -> None:
    np.testing.assert_allclose(inverse_loss_weights([0.5, 1.0, 1.0]), [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(equal_weights(4), [0.25] * 4)


@given(problems(), spaces)
@settings(deadline=None)
def test_the_optimum_lies_on_the_simplex_and_is_never_worse_than_a_member_or_the_equal_mean(
    problem: tuple[np.ndarray, np.ndarray], space: Space
) -> None:
    members, targets = problem
    weights = simplex_weights(members, targets, space)
    assert weights.shape == (len(members),)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    loss = kaggle_log_loss(combine(members, weights, space), targets)
    rivals = [kaggle_log_loss(member, targets) for member in members]
    rivals.append(kaggle_log_loss(combine(members, np.ones(len(members)), space), targets))
    assert loss <= min(rivals) + 1e-11


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_a_fine_grid_beats_the_optimum_of_two_members(seed: int, space: Space) -> None:
    members, targets = judges(seed, 2, 120)
    grid = [loss_of(members, (w, 1 - w), targets, space) for w in np.linspace(0, 1, 201)]
    best = loss_of(members, simplex_weights(members, targets, space), targets, space)
    assert best <= min(grid) + 1e-10
    assert best >= min(grid) - 1e-3  # the grid is fine enough to be near it


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_a_grid_beats_the_optimum_of_three_members(seed: int, space: Space) -> None:
    members, targets = judges(seed, 3, 60)
    steps = 25
    points = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    grid = [loss_of(members, np.array(point) / steps, targets, space) for point in points]
    best = loss_of(members, simplex_weights(members, targets, space), targets, space)
    assert best <= min(grid) + 1e-10
    assert best >= min(grid) - 5e-3


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_certifies_itself(seed: int, space: Space) -> None:
    """For a convex loss, ``g . w - min(g)`` bounds from above what any other point of the simplex could gain."""
    members, targets = judges(seed, 6, 400)
    weights = simplex_weights(members, targets, space)

    def loss(w: np.ndarray) -> float:
        mixed = np.tensordot(w, members if space == "mean" else np.log(members), axes=1)
        p = mixed if space == "mean" else np.exp(mixed) / np.exp(mixed).sum(axis=1, keepdims=True)
        return float(-(targets * np.log(p)).sum(axis=1).mean())

    slope = approx_fprime(weights, loss, 1e-7)
    assert slope @ weights - slope.min() < 1e-5


@pytest.mark.parametrize("space", SPACES)
def test_a_member_that_only_harms_gets_exactly_nothing(space: Space) -> None:
    members, targets = judges(0, 2, 300)
    harmful = np.roll(targets[None], 1, axis=2) * 0.98 + 0.02 / 3
    weights = simplex_weights(np.concatenate([members, harmful]), targets, space)
    assert weights[2] == 0
    np.testing.assert_allclose(weights[:2], simplex_weights(members, targets, space), atol=1e-4)


@pytest.mark.parametrize("space", SPACES)
def test_equal_members_share_equally_and_one_member_takes_all(space: Space) -> None:
    members, targets = judges(1, 1, 50)
    np.testing.assert_array_equal(simplex_weights(members, targets, space), [1])
    np.testing.assert_array_equal(simplex_weights(np.repeat(members, 4, axis=0), targets, space), [0.25] * 4)


@pytest.mark.parametrize("space", SPACES)
def test_a_vote_that_no_member_thought_possible_is_no_obstacle(space: Space) -> None:
    members = np.array([[[1.0, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]], [[1.0, 0, 0], [1, 0, 0], [0.4, 0.4, 0.2]]])
    weights = simplex_weights(members, np.eye(3)[[2, 1, 2]], space)
    assert np.isfinite(weights).all()
    assert weights[0] > 0.9


@pytest.mark.parametrize("space", SPACES)
def test_the_cross_fitted_loss_is_that_of_weights_fitted_on_the_other_parts(space: Space) -> None:
    members, targets = judges(3, 3, 150)
    groups = np.random.default_rng(3).integers(0, 60, size=150)
    part = grouped_stratified_folds(targets.argmax(axis=1), groups, 4, 7)
    losses = np.zeros(150)
    for k in range(4):
        weights = simplex_weights(members[:, part != k], targets[part != k], space)
        p = reference(members, weights, space)
        losses[part == k] = -np.log((p * targets).sum(axis=1))[part == k]
    found = cross_fitted_loss(members, targets, groups, space, n_parts=4, seed=7)
    assert found == pytest.approx(losses.mean(), abs=1e-9)


def test_cross_fitting_is_honest_where_the_fit_on_the_same_rows_is_not() -> None:
    """Members of pure noise: the optimum on its own rows flatters itself, the cross-fitted loss does not."""
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(3) * 4, size=(12, 80))
    targets = np.eye(3)[rng.integers(0, 3, 80)]
    in_sample = kaggle_log_loss(combine(members, simplex_weights(members, targets)), targets)
    assert in_sample < cross_fitted_loss(members, targets, np.arange(80)) - 0.01


def test_rows_of_one_prompt_cannot_choose_the_weights_for_each_other() -> None:
    """Each prompt has many copies that one member knows by heart: kept together, they do not help one another."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(5), 30)
    targets = np.eye(3)[rng.integers(0, 3, 150)]
    members = np.full((5, 150, 3), 0.05)
    for k in range(5):
        right = group == k
        members[k][right] += 0.85 * targets[right]
        members[k][~right] += 0.85 * np.roll(targets[~right], 1, axis=1)
    kept_together = cross_fitted_loss(members, targets, group)
    torn_apart = cross_fitted_loss(members, targets, np.arange(150))
    assert kept_together > torn_apart + 0.1


GOOD = np.full((2, 4, 3), 1 / 3)
VOTES = np.eye(3)[[0, 1, 2, 0]]


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 0.5])
def test_members_and_targets_that_are_not_probabilities_are_refused(value: float) -> None:
    bad = with_value(GOOD, (1, 2, 0), value)
    for call in (lambda: combine(bad, [1, 1]), lambda: simplex_weights(bad, VOTES)):
        with pytest.raises(ValueError, match=r"member 1: index 2 holds .* not probabilities that sum to 1"):
            call()
    with pytest.raises(ValueError, match="targets: index 3"):
        simplex_weights(GOOD, with_value(VOTES, (3, 1), value))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: combine(GOOD[0], [1, 1]), r"shape \[M, N, 3\]"),
        (lambda: combine(GOOD[:, :, :2], [1, 1]), r"shape \[M, N, 3\]"),
        (lambda: combine(GOOD[:0], []), "no members or no rows"),
        (lambda: combine(GOOD[:, :0], [1, 1]), "no members or no rows"),
        (lambda: combine(GOOD, [1]), r"weights must have shape \[2\]"),
        (lambda: combine(GOOD, [1, -1]), "not negative"),
        (lambda: combine(GOOD, [0, 0]), "not all zero"),
        (lambda: combine(GOOD, [1, np.nan]), "finite"),
        (lambda: combine(GOOD, [1, 1], "geometric"), "space must be one of mean, log"),  # type: ignore[arg-type]
        (lambda: simplex_weights(GOOD, VOTES, "x"), "space must be one of"),  # type: ignore[arg-type]
        (lambda: simplex_weights(GOOD, VOTES[:3]), r"targets must have shape \[4, 3\]"),
        (lambda: equal_weights(0), "at least one member"),
        (lambda: inverse_loss_weights([]), "at least one"),
        (lambda: inverse_loss_weights([1, 0]), "finite and positive"),
        (lambda: inverse_loss_weights([1, -2]), "finite and positive"),
        (lambda: inverse_loss_weights([1, np.nan]), "finite and positive"),
        (lambda: inverse_loss_weights([np.inf]), "finite and positive"),
        (lambda: cross_fitted_loss(GOOD, VOTES, [1, 2, 3]), r"groups must have shape \[4\]"),
        (lambda: cross_fitted_loss(GOOD, VOTES, [1, 1, 2, 2], n_parts=3), "cannot be cross-fitted in 3 parts"),
        (lambda: cross_fitted_loss(GOOD, VOTES, [1, 2, 3, 4], n_parts=1), "cannot be cross-fitted in 1 parts"),
    ],
)
def test_bad_input_is_a_value_error_that_says_what_is_wrong(call: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call()
