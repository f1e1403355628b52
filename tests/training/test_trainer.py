"""Losses, sampling and the equal weight of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from arena_distill.training.losses import soft_cross_entropy
from arena_distill.training.trainer import LengthGroupedSampler
from tests.training.student_runs import quick_settings, run_mode


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.5])
def test_soft_cross_entropy_matches_float64_numpy(smoothing: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 5, (50, 3))
    targets = generator.dirichlet([1, 1, 1], 50)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(((1 - smoothing) * targets + smoothing / 3) * log_p).sum(axis=1)
    actual = soft_cross_entropy(torch.tensor(logits), torch.tensor(targets), smoothing)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_hard_targets_with_smoothing_match_torch() -> None:
    logits, labels = torch.randn(20, 3), torch.randint(0, 3, (20,))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    actual = soft_cross_entropy(logits, torch.nn.functional.one_hot(labels, 3).float(), 0.1)
    torch.testing.assert_close(actual, expected)


lengths_lists = st.lists(st.integers(1, 400), min_size=1, max_size=300)


@given(lengths_lists, st.integers(1, 16), st.integers(0, 5))
def test_sampler_visits_each_row_once_and_keeps_the_short_batch_last(
    lengths: list[int], batch: int, epoch: int
) -> None:
    sampler = LengthGroupedSampler(np.array(lengths), batch, seed=3)
    sampler.epoch = epoch
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    again = LengthGroupedSampler(np.array(lengths), batch, seed=3)
    again.epoch = epoch
    assert list(again) == order


@given(lengths_lists, st.integers(1, 16), st.integers(0, 5))
def test_whole_batches_hold_every_row_and_are_filled_with_rows_of_the_same_epoch(
    lengths: list[int], batch: int, epoch: int
) -> None:
    sampler = LengthGroupedSampler(np.array(lengths), batch, seed=3, whole_batches=True)
    sampler.epoch = epoch
    order = list(sampler)
    assert len(order) == len(sampler) and len(order) % batch == 0
    times = np.bincount(order, minlength=len(lengths))
    assert len(order) - len(lengths) < batch, "more was filled in than the last batch needed"
    assert len(times) == len(lengths) and times.min() >= 1
    assert times.max() <= -(-batch // len(lengths)) + 1
    again = LengthGroupedSampler(np.array(lengths), batch, seed=3, whole_batches=True)
    again.epoch = epoch
    assert list(again) == order


@given(st.integers(1, 30), st.sampled_from([1, 2, 4]))
def test_whole_batches_are_the_same_order_without_filling_where_rows_divide_evenly(steps: int, batch: int) -> None:
    lengths = np.random.default_rng(steps).integers(1, 99, steps * batch)
    filled, plain = (LengthGroupedSampler(lengths, batch, seed=1, whole_batches=whole) for whole in (True, False))
    assert list(filled) == list(plain)


def test_sampler_batches_have_little_padding_and_differ_by_epoch() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 2000).astype(int)
    sampler = LengthGroupedSampler(lengths, 16, seed=0)
    order = np.array(list(sampler))
    batches = lengths[order].reshape(-1, 16)
    padded, random = (16 * b.max(axis=1).sum() for b in (batches, lengths.reshape(-1, 16)))
    assert padded / lengths.sum() < 1.2 < random / lengths.sum()
    sampler.epoch = 1
    assert list(sampler) != order.tolist()


def test_accumulation_weighs_every_row_alike(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    """Four batches of 4 and one batch of 16 give the same weights, also at a short last batch."""
    import json
    import shutil

    backbone = shutil.copytree(backbones / "bert", tmp_path / "no_dropout")
    config = json.loads((backbone / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (backbone / "config.json").write_text(json.dumps(config))
    for name, batch, accumulation in (("whole", 16, 1), ("parts", 4, 4)):
        settings = quick_settings(small_train_csv, backbone, tmp_path / name)
        run_mode("student-train", **settings, student_train_batch_size=batch, student_grad_accum=accumulation)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for key in one:
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=2e-5, err_msg=key)


def test_bf16_and_activation_checkpointing_train_to_a_loadable_student(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    from arena_distill.inference.judge import load_judge

    settings = quick_settings(small_train_csv, backbones / "llama", tmp_path / "s")
    run_mode("student-train", **settings, student_max_steps=3, student_bf16=True, student_gradient_checkpointing=True)
    parameters = list(load_judge(tmp_path / "s").model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in parameters)
