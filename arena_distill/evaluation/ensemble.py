"""Several predictions of the same rows made into one, and the weights that each deserves.

Members are probabilities, float64 ``[M, N, 3]`` in the class order A, B, tie. Every function raises ``ValueError`` for
a wrong shape, a value that is not finite or negative, a row that does not sum to 1, and for nothing to work on.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from arena_distill.data.folds import grouped_stratified_folds
from arena_distill.data.records import CLASSES
from arena_distill.evaluation.metrics import EPSILON, kaggle_log_loss, softmax
from arena_distill.runtime.errors import SettingsError

Space: TypeAlias = Literal["mean", "log"]
"""``mean``: average the probabilities. ``log``: average their logarithms, then normalise (a product of experts)."""

SUM_TOLERANCE = 1e-6
"""How far from 1 a row may sum: float32 rounding."""

_TIE = 1e-12  # losses closer than this are equal: rounding must not choose the weights
_ZERO = 1e-6  # a weight below this is the solver's way of writing zero, if zero costs nothing


def combine(members: ArrayLike, weights: ArrayLike, space: Space = "mean") -> np.ndarray:
    """The weighted mean of the members.

    Args:
        members: ``[M, N, 3]``.
        weights: ``[M]``, not negative and not all zero; divided by their sum.
        space: ``mean``: of the probabilities; ``log``: of their logarithms (clipped at ``metrics.EPSILON``, so that
            one member's zero does not veto a class), normalised by softmax.

    Returns:
        float64 ``[N, 3]``, rows sum to 1.
    """
    p = _members(members)
    w = _weights(weights, len(p))
    if _checked_space(space) == "log":
        return softmax(np.tensordot(w, np.log(np.maximum(p, EPSILON)), axes=1))
    mean = np.tensordot(w, p, axes=1)
    return mean / mean.sum(axis=1, keepdims=True)


def equal_weights(count: int) -> np.ndarray:
    """``count`` equal weights that sum to 1, float64 ``[count]``."""
    if count < 1:
        raise ValueError(f"an ensemble needs at least one member, not {count}")
    return np.full(count, 1 / count)


def inverse_loss_weights(losses: ArrayLike) -> np.ndarray:
    """Weights in proportion to 1 / loss that sum to 1; ``[M]`` -> float64 ``[M]``.

    Raises:
        ValueError: there are no losses, or one is not a finite positive number.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"losses must have shape [M] with at least one, not {list(values.shape)}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"losses must be finite and positive, not {values.tolist()}")
    inverse = values.min() / values  # at most 1, however small a loss is
    return inverse / inverse.sum()


def simplex_weights(members: ArrayLike, targets: ArrayLike, space: Space = "mean") -> np.ndarray:
    """The weights on the probability simplex whose ``combine`` has the least Kaggle log loss on the given rows.

    The problem is convex in the weights, so the optimum that the solver (SLSQP, analytic gradient) finds is the
    global one. Space ``mean``: a row's loss is the sum of ``-target * log(w . p)``, and minus the logarithm of a
    function that is linear in w is convex. Space ``log``: with ``l`` the members' log probabilities, the loss is
    ``logsumexp(w . l) - sum(target * (w . l))``, a log-sum-exp of linear functions minus a linear one. (Members are
    clipped at ``metrics.EPSILON`` first; Kaggle's own clip after combining, which is not convex, then changes a row's
    loss by no more than rounding.)

    Args:
        members: ``[M, N, 3]``.
        targets: ``[N, 3]``, one-hot labels or class probabilities.
        space: how the members are combined.

    Returns:
        float64 ``[M]``, not negative (zeros are exact), sums to 1; never worse on these rows than the best single
        member or the equal mean by more than 1e-12, and the equal mean itself where nothing is better than that.
    """
    p = _members(members)
    t = _targets(targets, p)
    candidates = [equal_weights(len(p)), *np.eye(len(p))]
    if len(p) > 1:
        found = _solve(p, t, _checked_space(space))
        sparse = np.where(found < _ZERO, 0.0, found)
        candidates += [sparse / sparse.sum(), found]
    losses = [kaggle_log_loss(combine(p, w, space), t) for w in candidates]
    return next(w for w, loss in zip(candidates, losses, strict=True) if loss <= min(losses) + _TIE)


def cross_fitted_loss(
    members: ArrayLike,
    targets: ArrayLike,
    groups: ArrayLike,
    space: Space = "mean",
    n_parts: int = 5,
    seed: int = 42,
) -> float:
    """Kaggle log loss where each part's rows are predicted with ``simplex_weights`` of the other parts.

    The honest figure of an optimised ensemble: the loss on the rows that chose the weights is too low.

    Args:
        members: ``[M, N, 3]``.
        targets: ``[N, 3]``.
        groups: ``[N]``, any sortable dtype; rows of one group (prompt hash) are never in two parts.
        space: how the members are combined.
        n_parts: from 2 to the number of groups.
        seed: of the division.

    Raises:
        ValueError: also if there are fewer groups than parts.
    """
    p = _members(members)
    t = _targets(targets, p)
    group = np.asarray(groups)
    if group.shape != (len(t),):
        raise ValueError(f"groups must have shape [{len(t)}], not {list(group.shape)}")
    try:
        part = grouped_stratified_folds(t.argmax(axis=1), group, n_parts, seed)
    except SettingsError as error:
        raise ValueError(f"cannot be cross-fitted in {n_parts} parts: {error}") from error
    predicted = np.empty_like(t)
    for held_out in (part == k for k in np.unique(part)):
        weights = simplex_weights(p[:, ~held_out], t[~held_out], space)
        predicted[held_out] = combine(p[:, held_out], weights, space)
    return kaggle_log_loss(predicted, t)


def _solve(p: np.ndarray, t: np.ndarray, space: Space) -> np.ndarray:
    from scipy.optimize import minimize

    clipped = np.maximum(p, EPSILON)
    count, rows = p.shape[:2]
    terms = (clipped if space == "mean" else np.log(clipped)).reshape(count, -1)

    def mean_loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        q = np.maximum(w @ terms, EPSILON)
        return -float(t.ravel() @ np.log(q)) / rows, -(terms @ (t.ravel() / q)) / rows

    def log_loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = (w @ terms).reshape(rows, -1)
        z = z - z.max(axis=1, keepdims=True)
        q = softmax(z)
        total = t.sum(axis=1)
        loss = total @ np.log(np.exp(z).sum(axis=1)) - (t * z).sum()
        return float(loss) / rows, terms @ (total[:, None] * q - t).ravel() / rows

    result = minimize(
        mean_loss if space == "mean" else log_loss,
        equal_weights(count),  # not a corner, where the gradient may be all but infinite
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    w = np.clip(np.nan_to_num(result.x), 0, None)
    return w / w.sum() if w.sum() > 0 else equal_weights(count)


def _members(members: ArrayLike) -> np.ndarray:
    p = np.asarray(members, dtype=np.float64)
    if p.ndim != 3 or p.shape[2] != len(CLASSES):
        raise ValueError(f"members must have shape [M, N, {len(CLASSES)}], not {list(p.shape)}")
    if not p.size:
        raise ValueError(f"there are no members or no rows: shape {list(p.shape)}")
    for index, member in enumerate(p):
        _check_distributions(member, f"member {index}")
    return p


def _targets(targets: ArrayLike, members: np.ndarray) -> np.ndarray:
    t = np.asarray(targets, dtype=np.float64)
    if t.shape != members.shape[1:]:
        raise ValueError(f"targets must have shape {list(members.shape[1:])} as the members, not {list(t.shape)}")
    _check_distributions(t, "targets")
    return t


def _check_distributions(p: np.ndarray, name: str) -> None:
    good = np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(f"{name}: index {row} holds {p[row].tolist()}, not probabilities that sum to 1")


def _weights(weights: ArrayLike, count: int) -> np.ndarray:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (count,):
        raise ValueError(f"weights must have shape [{count}], one a member, not {list(w.shape)}")
    if not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise ValueError(f"weights must be finite, not negative and not all zero: {w.tolist()}")
    w = w / w.max()  # the sum of huge weights must not overflow
    return np.asarray(w / w.sum())


def _checked_space(space: str) -> Space:
    if space not in get_args(Space):
        raise ValueError(f"space must be one of {', '.join(get_args(Space))}, not {space!r}")
    return space  # type: ignore[return-value]
