"""Each term of the distillation loss against float64 NumPy, its gradient, and what silent teachers leave of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arena_distill.training.losses import (
    DistillationLoss,
    cosine_distance,
    distillation_kl,
    probability_mse,
    soft_cross_entropy,
    teacher_probabilities,
    votes_loss,
)
from arena_distill.training.temperature_schedule import TemperatureSchedule, temperature_schedule

SEEDS = range(6)
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


# The reference: plain NumPy in float64, one row at a time


def ref_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def ref_log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def ref_cross_entropy(logits: np.ndarray, target: np.ndarray, smoothing: float) -> float:
    return -float((((1 - smoothing) * target + smoothing / 3) * ref_log_softmax(logits)).sum())


def ref_teachers(said: np.ndarray, weights: np.ndarray, temperature: float) -> np.ndarray | None:
    """``[3]`` of ``[K, 3]``; None where all K are silent."""
    heard = [k for k in range(len(said)) if np.isfinite(said[k]).all()]
    if not heard:
        return None
    total = sum(weights[k] for k in heard)
    return np.asarray(sum(weights[k] / total * ref_softmax(said[k] / temperature) for k in heard))


def ref_kl(logits: np.ndarray, soft: np.ndarray, temperature: float) -> float:
    log_p = ref_log_softmax(logits / temperature)
    return temperature**2 * sum(q * (math.log(q) - lp) for q, lp in zip(soft, log_p, strict=True) if q > 0)


def ref_mse(logits: np.ndarray, p: np.ndarray) -> float:
    return float(((ref_softmax(logits) - p) ** 2).mean())


def ref_cosine(logits: np.ndarray, soft: np.ndarray, temperature: float) -> float:
    p = ref_softmax(logits / temperature)
    return 1 - float(p @ soft) / math.sqrt(float(p @ p) * float(soft @ soft))


def ref_loss(loss: DistillationLoss, batch: Batch, temperature: float) -> np.ndarray:
    rows = []
    for logits, target, said in zip(*batch, strict=True):
        votes = ref_cross_entropy(logits, target, loss.label_smoothing)
        weights = np.array(loss.teacher_weights or [1.0] * len(said))
        soft, at_one = ref_teachers(said, weights, temperature), ref_teachers(said, weights, 1.0)
        if soft is None or at_one is None:
            rows.append(votes)
            continue
        rows.append(
            loss.alpha * ref_kl(logits, soft, temperature)
            + (1 - loss.alpha) * votes
            + loss.mse_weight * ref_mse(logits, at_one)
            + loss.cosine_weight * ref_cosine(logits, soft, temperature)
        )
    return np.array(rows)


def random_batch(seed: int, rows: int = 40, teachers: int = 3, hard: bool = False) -> Batch:
    """Student logits, votes and teachers; a third of the (row, teacher) pairs is silent, and the first row wholly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, 3))
    votes = np.eye(3)[rng.integers(3, size=rows)] if hard else rng.dirichlet(np.ones(3), rows)
    said = rng.normal(0, 4, (rows, teachers, 3))
    said[rng.random((rows, teachers)) < 1 / 3] = np.nan
    said[0], said[1] = np.nan, rng.normal(0, 4, (teachers, 3))
    return logits, votes, said


def tensors(batch: Batch, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, votes, said = (torch.from_numpy(values).to(dtype) for values in batch)
    return logits, votes, said


def random_loss(seed: int, teachers: int = 3) -> DistillationLoss:
    rng = np.random.default_rng([seed, 99])
    return DistillationLoss(
        alpha=float(rng.uniform(0.1, 0.9)),
        temperature=TemperatureSchedule(float(rng.uniform(2, 6)), float(rng.uniform(0.5, 2))),
        mse_weight=float(rng.uniform(0.1, 2)),
        cosine_weight=float(rng.uniform(0.1, 2)),
        label_smoothing=float(rng.uniform(0, 0.3)),
        teacher_weights=tuple(rng.uniform(0.1, 5, teachers).tolist()),
    )


def assert_rows(
    actual: torch.Tensor, expected: Sequence[float | np.ndarray] | np.ndarray, tolerance: float = 1e-10
) -> None:
    wanted = np.asarray(expected)
    assert actual.shape == wanted.shape
    np.testing.assert_allclose(actual.double().numpy(), wanted, rtol=tolerance, atol=tolerance)


# Values


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.9])
def test_cross_entropy_of_soft_votes_equals_the_reference(smoothing: float, seed: int) -> None:
    logits, votes, _ = batch = random_batch(seed)
    actual = soft_cross_entropy(*tensors(batch)[:2], smoothing)
    assert_rows(actual, [ref_cross_entropy(z, t, smoothing) for z, t in zip(logits, votes, strict=True)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_weighted_mean_of_speaking_teachers_equals_the_reference(temperature: float, seed: int) -> None:
    _, _, said = batch = random_batch(seed)
    weights = np.random.default_rng(seed).uniform(0.1, 5, 3)
    soft, heard = teacher_probabilities(tensors(batch)[2], torch.from_numpy(weights), temperature)
    expected = [ref_teachers(row, weights, temperature) for row in said]
    assert heard.tolist() == [row is not None for row in expected]
    assert not heard[0] and heard[1]
    assert_rows(soft, [np.full(3, 1 / 3) if row is None else row for row in expected])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_kl_mse_and_cosine_equal_the_reference(temperature: float, seed: int) -> None:
    logits, soft, _ = batch = random_batch(seed)
    z, q, _ = tensors(batch)
    pairs = list(zip(logits, soft, strict=True))
    assert_rows(distillation_kl(z, q, temperature), [ref_kl(*pair, temperature) for pair in pairs])
    assert_rows(cosine_distance(z, q, temperature), [ref_cosine(*pair, temperature) for pair in pairs])
    assert_rows(probability_mse(z, q), [ref_mse(*pair) for pair in pairs])


def test_kl_takes_classes_that_the_teachers_rule_out() -> None:
    logits, certain, _ = batch = random_batch(0, hard=True)
    actual = distillation_kl(*tensors(batch)[:2], 2.0)
    assert_rows(actual, [ref_kl(z, q, 2.0) for z, q in zip(logits, certain, strict=True)])


@pytest.mark.parametrize("progress", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_whole_loss_equals_the_reference_at_the_temperature_of_its_progress(seed: int, progress: float) -> None:
    batch, loss = random_batch(seed), random_loss(seed)
    temperature = loss.temperature.start * (1 - progress) + loss.temperature.end * progress
    assert_rows(loss(*tensors(batch), progress), ref_loss(loss, batch, temperature))


@pytest.mark.parametrize("hard", [False, True])
def test_without_weights_teachers_count_alike(hard: bool) -> None:
    batch, loss = random_batch(3, hard=hard), replace(random_loss(3), teacher_weights=())
    assert_rows(loss(*tensors(batch)), ref_loss(loss, batch, loss.temperature.start))


def as_seen_in(dtype: torch.dtype, batch: Batch) -> Batch:
    """The batch after rounding, so that only the arithmetic can differ."""
    logits, votes, said = (values.double().numpy() for values in tensors(batch, dtype))
    return logits, votes, said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_precision_inputs_lose_nothing_beyond_their_own_rounding(seed: int, dtype: torch.dtype) -> None:
    """Computed in bfloat16 the error would be near 1e-2."""
    batch, loss = random_batch(seed), random_loss(seed)
    actual = loss(*tensors(batch, dtype))
    assert actual.dtype == torch.float32
    assert_rows(actual, ref_loss(loss, as_seen_in(dtype, batch), loss.temperature.start), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_in_half_precision_and_votes_and_teachers_in_float32_go_together(dtype: torch.dtype) -> None:
    """What the Trainer hands over: logits of an autocast model, the rest from the data set."""
    batch, loss = random_batch(0), random_loss(0)
    logits = tensors(batch, dtype)[0].requires_grad_()
    losses = loss(logits, *tensors(batch, torch.float32)[1:])
    rounded = as_seen_in(dtype, batch)[0], *as_seen_in(torch.float32, batch)[1:]
    assert_rows(losses.detach(), ref_loss(loss, rounded, loss.temperature.start), 1e-5)
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()


# Gradients

TERMS: dict[str, Callable[[torch.Tensor, Batch], torch.Tensor]] = {
    "votes": lambda z, b: soft_cross_entropy(z, tensors(b)[1], 0.1),
    "kl": lambda z, b: distillation_kl(z, tensors(b)[1], 2.5),
    "mse": lambda z, b: probability_mse(z, tensors(b)[1]),
    "cosine": lambda z, b: cosine_distance(z, tensors(b)[1], 2.5),
    "whole": lambda z, b: random_loss(1)(z, *tensors(b)[1:], progress=0.3),
    "whole, hard votes": lambda z, b: random_loss(2)(z, torch.eye(3, dtype=z.dtype).repeat(4, 1), tensors(b)[2]),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
def test_gradients_equal_finite_differences_also_where_rows_are_silent(
    term: Callable[[torch.Tensor, Batch], torch.Tensor],
) -> None:
    batch = random_batch(5, rows=12)
    assert np.isnan(batch[2]).all(axis=(1, 2)).any()
    assert torch.autograd.gradcheck(lambda z: term(z, batch), tensors(batch)[0].requires_grad_(), atol=1e-7, rtol=1e-6)


def gradient(losses: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(losses.sum(), logits)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_without_a_teacher_have_the_gradient_of_their_votes_to_the_last_bit(dtype: torch.dtype) -> None:
    batch, loss = random_batch(7), random_loss(7)
    logits, votes, said = tensors(batch, dtype)
    logits.requires_grad_()
    silent = torch.isnan(said).all(dim=2).all(dim=1)
    assert 0 < int(silent.sum()) < len(silent)
    distilled, voted = loss(logits, votes, said), votes_loss(loss.label_smoothing)(logits, votes, None)
    assert torch.equal(distilled[silent], voted[silent])
    assert not torch.isclose(distilled[~silent], voted[~silent]).any()
    of_distilled, of_votes = gradient(distilled, logits), gradient(voted, logits)
    assert torch.isfinite(of_distilled).all()
    assert torch.equal(of_distilled[silent], of_votes[silent])


HALF_NAN = [float("nan"), 1.0, 2.0]
INFINITE = [float("inf"), 1.0, 2.0]


@pytest.mark.parametrize("row", [HALF_NAN, INFINITE, [float("-inf")] * 3], ids=str)
def test_rows_that_are_not_finite_in_one_place_are_silent_in_all(row: list[float]) -> None:
    batch, loss = random_batch(8), random_loss(8)
    logits, votes, said = tensors(batch)
    logits.requires_grad_()
    odd, silent = said.clone(), said.clone()
    odd[2:5], silent[2:5] = torch.tensor(row, dtype=torch.float64), torch.nan
    assert torch.equal(loss(logits, votes, odd), loss(logits, votes, silent))
    assert torch.isfinite(gradient(loss(logits, votes, odd), logits)).all()


def test_no_gradient_reaches_the_teachers() -> None:
    """They are data; a graph through them would hold memory for nothing, and NaN rows would poison it."""
    logits, votes, said = tensors(random_batch(9))
    assert not teacher_probabilities(said, torch.ones(3), 2.0)[0].requires_grad
    losses = random_loss(9)(logits.requires_grad_(), votes, said)
    losses.sum().backward()
    assert said.grad is None and votes.grad is None


@pytest.mark.parametrize("temperature", [1.0, 3.0, 50.0])
def test_kl_gradient_is_temperature_times_the_difference_of_probabilities(temperature: float) -> None:
    logits, said = (values.requires_grad_() for values in tensors(random_batch(10))[:2])
    teacher = torch.softmax(said.detach() / temperature, dim=-1)
    actual = gradient(distillation_kl(logits, teacher, temperature), logits)
    expected = temperature * (torch.softmax(logits / temperature, dim=-1) - teacher)
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-9, atol=1e-12)


def test_kl_gradient_keeps_its_size_and_tends_to_the_difference_of_centred_logits_over_three() -> None:
    """Hinton et al. 2015, equation 4, times T²."""
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(0, 2, (50, 3))) for _ in range(2))
    student.requires_grad_()
    centred = [(z - z.mean(dim=-1, keepdim=True)).detach() for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / 3
    gaps, sizes = [], []
    for temperature in (10.0, 100.0, 1e3, 1e4):
        soft = torch.softmax(teacher / temperature, dim=-1)
        actual = gradient(distillation_kl(student, soft, temperature), student)
        gaps.append(float((actual - limit).abs().max()))
        sizes.append(float(actual.norm() / limit.norm()))
    assert gaps[-1] < 1e-3
    assert all(later < earlier / 5 for earlier, later in pairwise(gaps)), gaps
    assert all(0.8 < size < 1.25 for size in sizes), sizes


# What must hold whatever the numbers

OFF = DistillationLoss(alpha=0.0, temperature=TemperatureSchedule(3.0, 3.0), label_smoothing=0.1)


def test_with_all_three_weights_zero_only_votes_count() -> None:
    logits, votes, said = tensors(random_batch(11))
    logits.requires_grad_()
    assert not OFF.hears_teachers
    alone = soft_cross_entropy(logits, votes, 0.1)
    assert torch.equal(OFF(logits, votes, said), alone)
    assert torch.equal(
        gradient(OFF(logits, votes, said), logits), gradient(soft_cross_entropy(logits, votes, 0.1), logits)
    )
    assert torch.equal(votes_loss(0.1)(logits, votes, said), alone)


ONE_ON = [replace(OFF, alpha=0.5), replace(OFF, mse_weight=0.5), replace(OFF, cosine_weight=0.5)]


@pytest.mark.parametrize("loss", ONE_ON, ids=["alpha", "mse", "cosine"])
def test_each_of_the_three_weights_alone_makes_the_teachers_heard(loss: DistillationLoss) -> None:
    batch = random_batch(12)
    assert loss.hears_teachers
    assert_rows(loss(*tensors(batch)), ref_loss(loss, batch, 3.0))
    assert not torch.equal(loss(*tensors(batch)), OFF(*tensors(batch)))


def test_without_teacher_logits_the_loss_is_that_of_the_votes() -> None:
    logits, votes, _ = tensors(random_batch(13))
    loss = random_loss(13)
    assert torch.equal(loss(logits, votes, None), soft_cross_entropy(logits, votes, loss.label_smoothing))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_student_equal_to_its_teacher_has_no_loss_and_no_gradient_at_alpha_one(temperature: float) -> None:
    logits, votes, _ = tensors(random_batch(14))
    said = (logits + torch.linspace(-9, 9, len(logits))[:, None])[:, None]  # a constant changes no probability
    logits.requires_grad_()
    schedule = TemperatureSchedule(temperature, temperature)
    loss = DistillationLoss(1.0, schedule, mse_weight=2.0, cosine_weight=3.0)
    losses = loss(logits, votes, said)
    assert losses.detach().abs().max() < 1e-12
    assert gradient(losses, logits).abs().max() < 1e-7
    assert loss(logits.detach() + torch.tensor([1.0, 0, 0]), votes, said).mean() > 1e-2


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 20))
@settings(deadline=None)
def test_no_term_of_the_teachers_is_negative(seed: int, temperature: float) -> None:
    z, q, _ = tensors(random_batch(seed, rows=8))
    for losses in (distillation_kl(z, q, temperature), probability_mse(z, q), cosine_distance(z, q, temperature)):
        assert losses.min() > -1e-9


@given(st.lists(st.integers(0, 39), min_size=1, max_size=12), st.integers(0, 5))
@settings(deadline=None)
def test_a_rows_loss_does_not_depend_on_the_rows_beside_it(chosen: list[int], seed: int) -> None:
    """So the mean over a batch is the mean of its rows, silent or not."""
    logits, votes, said = tensors(random_batch(seed))
    loss = random_loss(seed)
    together = loss(logits[chosen], votes[chosen], said[chosen])
    alone = torch.cat([loss(logits[k : k + 1], votes[k : k + 1], said[k : k + 1]) for k in chosen])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.mean(), alone.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_only_the_ratio_of_the_teachers_weights_matters(factor: float) -> None:
    batch, loss = random_batch(15), replace(random_loss(15), teacher_weights=(0.5, 3.0, 1.25))
    scaled = replace(loss, teacher_weights=tuple(factor * weight for weight in loss.teacher_weights))
    torch.testing.assert_close(scaled(*tensors(batch)), loss(*tensors(batch)), rtol=1e-6, atol=1e-6)
    other = replace(loss, teacher_weights=(3.0, 0.5, 1.25))
    assert (other(*tensors(batch)) - loss(*tensors(batch))).abs().max() > 1e-2


def test_where_one_teacher_is_silent_the_others_share_the_whole_weight() -> None:
    logits, votes, said = tensors(random_batch(16, teachers=3))
    said[:, 0], said[:, 1:] = torch.nan, torch.nan_to_num(said[:, 1:], nan=1.5)
    three = replace(random_loss(16), teacher_weights=(100.0, 1.0, 3.0))
    two = replace(three, teacher_weights=(1.0, 3.0))
    torch.testing.assert_close(three(logits, votes, said), two(logits, votes, said[:, 1:]), rtol=1e-12, atol=1e-12)


def test_teachers_may_stand_in_any_order_with_their_weights() -> None:
    logits, votes, said = tensors(random_batch(17))
    loss = random_loss(17)
    turned = replace(loss, teacher_weights=loss.teacher_weights[::-1])
    torch.testing.assert_close(turned(logits, votes, said.flip(1)), loss(logits, votes, said), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_enormous_logits_of_either_side_keep_loss_and_gradient_finite(temperature: float, dtype: torch.dtype) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * 3)  # every sign on every class
    student = corners.repeat_interleave(len(corners), dim=0).to(dtype).requires_grad_()
    teacher = corners.repeat(len(corners), 1)[:, None].to(dtype)
    votes = torch.eye(3).repeat(len(student) // 3, 1).to(dtype)
    loss = DistillationLoss(0.5, TemperatureSchedule(temperature, temperature), 1.0, 1.0)
    losses = loss(student, votes, teacher)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient(losses, student)).all()


# The temperature's schedule


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("", 3.0, 3.0), ("linear:5,2", 5.0, 2.0), ("linear: 1 , 4.5 ", 1.0, 4.5), (" linear:1e1,0.5", 10.0, 0.5)],
)
def test_schedule_is_read(text: str, start: float, end: float) -> None:
    assert TemperatureSchedule.parse(text, 3.0) == TemperatureSchedule(start, end)
    assert temperature_schedule(text) == text


BAD_SCHEDULES = [
    " ", "5", "5,2", "linear", "linear:", "linear:5", "linear:,", "linear:5,", "linear:,2", "linear:5,2,1",
    "linear:5;2", "linear:a,b", "linear:5,0", "linear:0,2", "linear:-5,2", "linear:5,-2", "linear:nan,2",
    "linear:5,nan", "linear:inf,2", "linear:5,inf", "linear:5,2:1", "cosine:5,2", "Linear:5,2", "linear=5,2",
    ":5,2", "linear:0x5,2", "linear:1e999,2", "linear:1e-999,2",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_SCHEDULES, ids=repr)
def test_a_bad_schedule_is_refused_with_the_form_that_is_wanted(text: str) -> None:
    with pytest.raises(ValueError, match=r"linear:START,END.*such as linear:5,2"):
        TemperatureSchedule.parse(text, 3.0)
    with pytest.raises(ValueError, match="linear:START,END"):
        temperature_schedule(text)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 1))
def test_schedule_is_a_straight_line_from_start_to_end(start: float, end: float, progress: float) -> None:
    schedule = TemperatureSchedule(start, end)
    assert schedule.at(0.0) == start
    assert schedule.at(1.0) == pytest.approx(end)
    assert schedule.at(progress) == pytest.approx((1 - progress) * start + progress * end)
    low, high = sorted((start, end))
    assert low - 1e-9 <= schedule.at(progress) <= high + 1e-9


@pytest.mark.parametrize(("progress", "expected"), [(-0.5, 5.0), (-math.inf, 5.0), (1.5, 2.0), (math.inf, 2.0)])
def test_beyond_its_ends_the_schedule_stays_at_them(progress: float, expected: float) -> None:
    assert TemperatureSchedule(5.0, 2.0).at(progress) == expected
