from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from arena_distill.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    TemperatureBoundWarning,
    calibration_report,
    fit_temperature,
    load_calibration,
    view_probabilities,
)
from arena_distill.evaluation.metrics import (
    brier_score,
    expected_calibration_error,
    kaggle_log_loss,
)
from arena_distill.runtime.errors import InputError


def nll(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """The fit's objective, through scipy's log-softmax."""
    return float(-(targets * log_softmax(logits / temperature, axis=-1)).sum(axis=-1).mean())


def random_problem(seed: int, views: int = 2, rows: int = 200, soft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Views that scatter around logits from which the targets are drawn at a random temperature."""
    rng = np.random.default_rng(seed)
    base = rng.normal(scale=2, size=(rows, 3))
    p = softmax(base / rng.uniform(0.5, 4), axis=1)
    targets = p if soft else np.eye(3)[[rng.choice(3, p=row) for row in p]]
    return base + rng.normal(scale=0.3, size=(views, rows, 3)), targets


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_temperature_equals_scipys_minimum_and_no_grid_point_beats_it(seed: int, soft: bool) -> None:
    logits, targets = random_problem(seed, soft=soft)
    fitted = fit_temperature(logits, targets)
    best = minimize_scalar(
        lambda log_t: nll(logits, targets, np.exp(log_t)),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert fitted == pytest.approx(np.exp(best.x), rel=1e-5)
    grid = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 2000)
    losses = [nll(logits, targets, t) for t in grid]
    assert nll(logits, targets, fitted) <= min(losses) + 1e-12
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


@given(
    logits=st.integers(1, 12).flatmap(
        lambda n: hnp.arrays(np.float64, (2, n, 3), elements=st.floats(-1e4, 1e4, allow_nan=False))
    ),
    seed=st.integers(0, 2**32 - 1),
    soft=st.booleans(),
)
def test_calibration_never_raises_the_nll_on_the_fitting_rows(logits: np.ndarray, seed: int, soft: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = logits.shape[1]
    targets = rng.dirichlet(np.ones(3), size=rows) if soft else np.eye(3)[rng.integers(3, size=rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TemperatureBoundWarning)
        report = calibration_report(logits, targets)
        temperature = fit_temperature(logits, targets)
    assert MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
    before = nll(logits, targets, 1.0)
    assert nll(logits, targets, temperature) <= before + 1e-12 * max(1.0, before)
    assert report["nll_cal_improvement"] is not None
    assert report["nll_cal_improvement"] >= -1e-12 * max(1.0, before)


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_recovered(true_temperature: float) -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(500, 3)) * true_temperature
    exact = softmax(logits / true_temperature, axis=1)
    assert fit_temperature(logits, exact) == pytest.approx(true_temperature, rel=1e-8)
    assert fit_temperature(logits.astype(np.float32), exact) == pytest.approx(true_temperature, rel=1e-4)


def test_a_known_temperature_is_recovered_from_drawn_votes() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=4, size=(20_000, 3))
    labels = [rng.choice(3, p=row) for row in softmax(logits / 2, axis=1)]
    assert fit_temperature(logits, np.eye(3)[labels]) == pytest.approx(2, rel=0.05)


def test_constant_logits_leave_the_temperature_at_one() -> None:
    for logits in (np.zeros((4, 3)), np.full((2, 4, 3), 7.3)):
        assert fit_temperature(logits, np.eye(3)[[0, 1, 2, 0]]) == 1.0


def test_separable_rows_hit_the_lower_bound_and_say_so() -> None:
    labels = np.array([0, 1, 2, 1])
    with pytest.warns(TemperatureBoundWarning, match=r"0\.05"):
        assert fit_temperature(np.eye(3)[labels], np.eye(3)[labels]) == MIN_TEMPERATURE


def test_logits_against_the_truth_hit_the_upper_bound_and_say_so() -> None:
    labels = np.array([0, 1, 2, 1])
    with pytest.warns(TemperatureBoundWarning, match="20"):
        assert fit_temperature(-np.eye(3)[labels], np.eye(3)[labels]) == MAX_TEMPERATURE


def test_a_fit_inside_the_bounds_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_temperature(*random_problem(0))


def test_views_count_alike_and_their_order_does_not_matter() -> None:
    logits, targets = random_problem(3, views=3)
    stacked = fit_temperature(logits.reshape(-1, 3), np.tile(targets, (3, 1)))
    assert fit_temperature(logits, targets) == pytest.approx(stacked, rel=1e-9)
    assert fit_temperature(logits[::-1], targets) == pytest.approx(stacked, rel=1e-9)


def test_view_probabilities_average_probabilities_not_logits() -> None:
    logits, _ = random_problem(4, views=3)
    np.testing.assert_allclose(view_probabilities(logits, 1.7), softmax(logits / 1.7, axis=-1).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(view_probabilities(logits[0], 1.7), softmax(logits[0] / 1.7, axis=-1), rtol=1e-12)


SPLITS, TIMES = ("cal", "holdout"), ("before", "after")
INTERFACE_KEYS = {"temperature"} | {
    f"{metric}_{split}_{time}"
    for metric in ("nll", "logloss")
    for split in SPLITS
    for time in (*TIMES, "improvement")
}  # fmt: skip
OUR_KEYS = {f"{metric}_{split}_{time}" for metric in ("ece", "brier") for split in SPLITS for time in TIMES}
OUR_KEYS |= {f"rows_{split}" for split in SPLITS}


def test_report_has_exactly_the_keys_of_the_interface_and_defined_values() -> None:
    cal, holdout = random_problem(5), random_problem(6, rows=150)
    report = calibration_report(*cal, *holdout)
    assert set(report) == INTERFACE_KEYS | OUR_KEYS
    temperature = fit_temperature(*cal)
    expected: dict[str, float] = {"temperature": temperature, "rows_cal": 200, "rows_holdout": 150}
    for split, (logits, targets) in zip(SPLITS, (cal, holdout), strict=True):
        for time, t in zip(TIMES, (1.0, temperature), strict=True):
            p = softmax(logits / t, axis=-1).mean(axis=0)
            expected |= {
                f"nll_{split}_{time}": nll(logits, targets, t),
                f"logloss_{split}_{time}": kaggle_log_loss(p, targets),
                f"ece_{split}_{time}": expected_calibration_error(p, targets),
                f"brier_{split}_{time}": brier_score(p, targets),
            }
        for metric in ("nll", "logloss"):
            change = expected[f"{metric}_{split}_before"] - expected[f"{metric}_{split}_after"]
            expected[f"{metric}_{split}_improvement"] = change
    assert report == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_report_without_a_holdout_has_the_same_keys_empty_and_goes_through_json(tmp_path: Path) -> None:
    report = calibration_report(*random_problem(7), None, None)
    assert set(report) == INTERFACE_KEYS | OUR_KEYS
    for key in report:
        if "_holdout" in key:
            assert report[key] == (0 if key == "rows_holdout" else None)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(report, allow_nan=False))
    assert load_calibration(path) == report["temperature"]


def test_the_holdout_has_no_say_in_the_temperature() -> None:
    cal, holdout = random_problem(8), random_problem(9)
    assert calibration_report(*cal, *holdout)["temperature"] == calibration_report(*cal)["temperature"]


def test_half_a_holdout_is_refused() -> None:
    cal = random_problem(10)
    with pytest.raises(ValueError, match="both"):
        calibration_report(*cal, cal[0], None)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((5, 2)), np.eye(3), "shape"),
        (np.zeros((5, 3)), np.eye(3), "shape"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "no rows"),
        (np.zeros((0, 3, 3)), np.eye(3), "no rows"),
        (np.full((3, 3), np.nan), np.eye(3), "finite"),
        (np.zeros((3, 3)), 2 * np.eye(3), "sum to 1"),
        (np.zeros((1, 3)), np.array([[2.0, -1, 0]]), "negative"),
        (np.zeros((1, 3)), np.array([[np.nan, 1, 0]]), "finite"),
    ],
)
def test_bad_input_is_refused(logits: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, targets)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[1.5]",
        b"{}",
        b'{"temperature": null}',
        b'{"temperature": "1.5"}',
        b'{"temperature": true}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 0}',
        b'{"temperature": -2.0}',
        b'{"temperature": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_broken_calibration_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"calibration\.json: .* -> "):
        load_calibration(path)


def test_a_missing_calibration_file_or_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "calibration.json", tmp_path):
        with pytest.raises(InputError, match=f"{path}: cannot be read"):
            load_calibration(path)


def test_an_integer_temperature_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(b'\xef\xbb\xbf{"temperature": 2}')
    assert load_calibration(path) == 2.0
