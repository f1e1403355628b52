"""Dropout that draws sixteen bits an element: the right share, the right mean, and torch's own generator."""

from __future__ import annotations

import pytest
import torch

from arena_distill.models.dropout import QuickDropout, dropout_factors, quicken_dropout

COUNT = 1_000_003  # no whole number of draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_share_that_is_dropped_is_right_and_the_mean_is_one(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = dropout_factors(torch.empty(COUNT, dtype=dtype), p)
    assert factors.dtype == dtype and factors.shape == (COUNT,)
    kept = factors[factors != 0].unique()
    assert len(kept) == 1 and float(kept) == pytest.approx(1 / (1 - p), rel=0.02 if p > 0.99 else 0.005)
    error = 6 * (p * (1 - p) / COUNT) ** 0.5  # six standard deviations
    assert float((factors == 0).double().mean()) == pytest.approx(p, abs=error + 1e-5)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(1)
    dropped = (dropout_factors(torch.empty(COUNT), 0.3) == 0).double()
    for step in (1, 2, 3, 4, 8):  # four elements share a number
        both = float((dropped[step:] * dropped[:-step]).mean())
        assert both == pytest.approx(0.09, abs=0.002), step
    by_place = dropped[: COUNT // 4 * 4].view(-1, 4).mean(dim=0)
    assert torch.allclose(by_place, torch.full((4,), 0.3, dtype=torch.double), atol=0.006)


def test_the_same_state_of_the_generator_draws_the_same() -> None:
    torch.manual_seed(2)
    state = torch.get_rng_state()
    one = dropout_factors(torch.empty(3, 5, 7), 0.4)
    other = dropout_factors(torch.empty(3, 5, 7), 0.4)
    torch.set_rng_state(state)
    assert torch.equal(dropout_factors(torch.empty(3, 5, 7), 0.4), one)
    assert not torch.equal(one, other) and one.shape == (3, 5, 7)


def test_layers_drop_alike_forwards_and_backwards_in_training_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.25), torch.nn.ReLU())
    names = list(model.state_dict())
    quicken_dropout(model)
    layer = model[1]
    assert isinstance(layer, QuickDropout) and list(model.state_dict()) == names
    x = torch.ones(64, 64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y) and y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    layer.p = 0.0
    assert torch.equal(layer(x), x)
    layer.p = 1.0
    assert not layer(x).any()
    layer.p = 0.25
    assert torch.equal(layer.eval()(x), x)
