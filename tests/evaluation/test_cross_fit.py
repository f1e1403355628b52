"""Cross-fitted temperatures: no row is scored with a temperature that its own prompt had a say in."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.special import log_softmax, softmax

from arena_distill.data.folds import grouped_stratified_folds
from arena_distill.data.prompts import View
from arena_distill.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    TemperatureBoundWarning,
    calibration_report,
    fit_temperature,
    load_calibration,
)
from arena_distill.evaluation.calibration_file import (
    CALIBRATION_FILE,
    read_calibration,
    view_names,
    write_calibration,
)
from arena_distill.evaluation.cross_fit import PARTS, CrossFitted, cross_fit
from arena_distill.evaluation.metrics import brier_score, expected_calibration_error, kaggle_log_loss
from arena_distill.runtime.errors import InputError

SEED = 42


def problem(seed: int, rows: int = 200, prompts: int = 90, views: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overconfident logits ``[V, N, 3]``, soft votes with a distinct first choice, and repeated prompts."""
    rng = np.random.default_rng(seed)
    base = rng.normal(scale=1.5, size=(rows, 3))
    drawn = [rng.choice(3, p=p) for p in softmax(base, axis=1)]
    votes = 0.7 * np.eye(3)[drawn] + 0.3 * rng.dirichlet(np.ones(3), rows)
    keys = rng.permutation(np.concatenate([np.arange(prompts), rng.integers(0, prompts, rows - prompts)]))
    return 3 * base + rng.normal(scale=0.3, size=(views, rows, 3)), votes, keys.astype(np.uint64) * 2**40


def parts_of(votes: np.ndarray, prompts: np.ndarray, seed: int = SEED) -> np.ndarray:
    count = min(5, len(set(prompts.tolist())))
    return grouped_stratified_folds(votes.argmax(axis=1), prompts, count, seed)


def by_hand(logits: np.ndarray, votes: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Temperatures ``[N]`` and probabilities ``[N, 3]``, one row at a time."""
    temperatures, p = np.empty(len(votes)), np.empty((len(votes), 3))
    for row in range(len(votes)):
        others = part != part[row]
        temperatures[row] = fit_temperature(logits[:, others], votes[others])
        p[row] = np.mean([softmax(view[row] / temperatures[row]) for view in logits], axis=0)
    return temperatures, p


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_each_rows_probability_is_that_of_a_temperature_fitted_on_the_other_parts(seed: int, views: int) -> None:
    logits, votes, prompts = problem(seed, views=views)
    part = parts_of(votes, prompts)
    fitted = cross_fit(logits, votes, prompts, SEED)
    temperatures, p = by_hand(logits, votes, part)
    assert len(set(temperatures)) == PARTS == 5
    np.testing.assert_allclose(fitted.probabilities, p, rtol=1e-9)
    assert fitted.probabilities.dtype == np.float64
    for number in range(PARTS):
        here = part == number
        assert not set(prompts[here]) & set(prompts[~here]), "a prompt on both sides"
    with_all = softmax(logits / fitted.report["temperature"], axis=-1).mean(axis=0)
    assert np.abs(with_all - p).max() > 1e-4, "else the rows' own temperature would pass unseen"


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_to_use_from_now_on_is_that_of_all_rows(seed: int) -> None:
    logits, votes, prompts = problem(seed)
    report = cross_fit(logits, votes, prompts, SEED).report
    assert report["temperature"] == fit_temperature(logits, votes)
    alone = calibration_report(logits, votes)
    assert {key: report[key] for key in report if "_cal" in key} == {key: alone[key] for key in alone if "_cal" in key}


@pytest.mark.parametrize("number", range(5))
def test_votes_of_a_part_change_nothing_of_its_own_probabilities_and_something_of_all_others(number: int) -> None:
    logits, votes, prompts = problem(5)
    here = parts_of(votes, prompts) == number
    changed = votes.copy()
    changed[here] = 0.4 * changed[here] + 0.6 * np.eye(3)[changed[here].argmax(axis=1)]  # surer; the parts stay
    np.testing.assert_array_equal(parts_of(changed, prompts), parts_of(votes, prompts))
    before, after = (cross_fit(logits, v, prompts, SEED).probabilities for v in (votes, changed))
    np.testing.assert_array_equal(before[here], after[here])
    assert (np.abs(before[~here] - after[~here]).max(axis=1) > 0).all()


def test_logits_of_a_part_change_nothing_of_the_temperatures_that_it_is_scored_with() -> None:
    logits, votes, prompts = problem(6)
    here = parts_of(votes, prompts) == 2
    changed = logits.copy()
    changed[:, here] *= 5
    fitted = cross_fit(changed, votes, prompts, SEED)
    temperature = fit_temperature(logits[:, ~here], votes[~here])
    np.testing.assert_allclose(
        fitted.probabilities[here], softmax(changed[:, here] / temperature, axis=-1).mean(axis=0), rtol=1e-9
    )


def test_another_seed_divides_the_rows_otherwise_and_the_same_one_alike() -> None:
    logits, votes, prompts = problem(7)
    one, again, other = (cross_fit(logits, votes, prompts, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.probabilities, again.probabilities)
    assert (one.probabilities != other.probabilities).any()
    assert one.report["temperature"] == other.report["temperature"]


INTERFACE = {"temperature"} | {
    f"{metric}_{split}_{time}"
    for metric in ("nll", "logloss")
    for split in ("cal", "holdout")
    for time in ("before", "after", "improvement")
}  # fmt: skip


def assert_whole(fitted: CrossFitted) -> None:
    assert set(fitted.report) >= INTERFACE
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in fitted.report.values())
    json.dumps(fitted.report, allow_nan=False)
    np.testing.assert_allclose(fitted.probabilities.sum(axis=1), 1, rtol=1e-9)


def test_the_report_has_the_interfaces_figures_and_the_holdouts_are_of_the_cross_fitted_probabilities() -> None:
    logits, votes, prompts = problem(8)
    fitted = cross_fit(logits, votes, prompts, SEED)
    assert_whole(fitted)
    temperatures, p = by_hand(logits, votes, parts_of(votes, prompts))
    raw = softmax(logits, axis=-1).mean(axis=0)
    expected = {
        "rows_holdout": 200,
        "cross_fitted_parts": 5,
        "nll_holdout_before": -(votes * log_softmax(logits, axis=-1)).sum(axis=-1).mean(),
        "nll_holdout_after": -(votes * log_softmax(logits / temperatures[:, None], axis=-1)).sum(axis=-1).mean(),
        "logloss_holdout_before": kaggle_log_loss(raw, votes),
        "logloss_holdout_after": kaggle_log_loss(p, votes),
        "ece_holdout_before": expected_calibration_error(raw, votes),
        "ece_holdout_after": expected_calibration_error(p, votes),
        "brier_holdout_before": brier_score(raw, votes),
        "brier_holdout_after": brier_score(p, votes),
    }
    for metric in ("nll", "logloss"):
        change = expected[f"{metric}_holdout_before"] - expected[f"{metric}_holdout_after"]
        expected[f"{metric}_holdout_improvement"] = change
        assert change > 0, "the logits were made three times too large"
    assert {key: fitted.report[key] for key in expected} == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_whatever_the_prompts_the_report_is_whole_and_no_prompt_fits_its_own_rows(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    logits, votes = rng.normal(0, 5, (2, rows, 3)), np.eye(3)[rng.integers(3, size=rows)]
    prompts = rng.integers(0, rng.integers(1, rows + 1), rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = cross_fit(logits, votes, prompts, seed)
    assert_whole(fitted)
    # A part's rows score best with the temperature that they had a say in, and so do all of them together.
    nll = {split: fitted.report[f"nll_{split}_after"] for split in ("cal", "holdout")}
    assert nll["holdout"] >= nll["cal"] * (1 - 1e-9)
    distinct = len(set(prompts.tolist()))
    assert fitted.report["cross_fitted_parts"] == min(5, distinct)
    if distinct > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TemperatureBoundWarning)
            expected = by_hand(logits, votes, parts_of(votes, prompts, seed))[1]
        np.testing.assert_allclose(fitted.probabilities, expected, rtol=1e-9)


@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_fewer_than_five_prompts_make_as_many_parts(prompts: int) -> None:
    logits, votes, keys = problem(9, rows=60, prompts=prompts)
    fitted = cross_fit(logits, votes, keys, SEED)
    assert fitted.report["cross_fitted_parts"] == prompts
    for key in set(keys.tolist()):
        here = keys == key
        temperature = fit_temperature(logits[:, ~here], votes[~here])
        np.testing.assert_allclose(
            fitted.probabilities[here], softmax(logits[:, here] / temperature, axis=-1).mean(axis=0), rtol=1e-9
        )


def test_a_single_prompt_is_scored_with_the_only_temperature_there_is_and_the_report_says_so() -> None:
    logits, votes, _ = problem(10, rows=30, prompts=5)
    fitted = cross_fit(logits, votes, np.zeros(30, np.uint64), SEED)
    assert_whole(fitted)
    assert fitted.report["cross_fitted_parts"] == 1
    temperature = fit_temperature(logits, votes)
    np.testing.assert_allclose(fitted.probabilities, softmax(logits / temperature, axis=-1).mean(axis=0), rtol=1e-9)
    assert fitted.report["logloss_holdout_after"] == pytest.approx(fitted.report["logloss_cal_after"], rel=1e-9)


@pytest.mark.parametrize(("sign", "bound"), [(1, MIN_TEMPERATURE), (-1, MAX_TEMPERATURE)])
def test_doubts_of_the_fits_become_notes_each_once_and_no_warning_escapes(sign: int, bound: float) -> None:
    votes = np.eye(3)[np.arange(60) % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = cross_fit(sign * 4 * votes[None], votes, np.arange(60), SEED)
    assert fitted.report["temperature"] == bound
    assert len(fitted.notes) == 1 and f"bound of {bound:g}" in fitted.notes[0]


def test_a_fit_without_doubts_leaves_no_notes_and_the_callers_warnings_as_they_were() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cross_fit(*problem(11), SEED).notes == ()
        warnings.warn("of the caller", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of the caller"]


@pytest.mark.parametrize(("place", "value"), [(0, np.nan), (1, 2.0)], ids=["logits not finite", "votes sum to more"])
def test_what_cannot_be_calibrated_is_refused(place: int, value: float) -> None:
    arrays = problem(12)
    arrays[place][..., 7, 1] = value
    with pytest.raises(ValueError, match=r"finite|sum to 1"):
        cross_fit(*arrays, SEED)


# calibration.json

VIEWS = [View(64), View(64, swap=True), View(128)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with weights in two files."""
    for number in (1, 2):
        save_file({f"w{number}": torch.full((3,), float(number))}, tmp_path / f"model-{number}.safetensors")
    return tmp_path


@pytest.fixture
def calibrated(model: Path) -> Path:
    write_calibration(model, cross_fit(*problem(13), SEED).report, VIEWS)
    return model


def test_what_is_written_is_read_again_with_its_views_and_figures(calibrated: Path) -> None:
    report = cross_fit(*problem(13), SEED).report
    saved = read_calibration(calibrated)
    assert saved is not None
    assert saved.temperature == report["temperature"] == load_calibration(calibrated / CALIBRATION_FILE)
    assert saved.views == ("64", "64 swapped", "128") == view_names(VIEWS)
    assert {key: saved.figures[key] for key in report} == report
    assert json.loads((calibrated / "calibration.json").read_text()).keys() >= INTERFACE


def test_without_a_file_there_is_no_calibration(model: Path, tmp_path: Path) -> None:
    assert read_calibration(model) is None
    assert read_calibration(tmp_path / "nowhere") is None


def change_a_weight(model: Path) -> None:
    save_file({"w2": torch.tensor([2.0, 2.0, 2.0001])}, model / "model-2.safetensors")


def add_weights(model: Path) -> None:
    save_file({"w3": torch.zeros(1)}, model / "model-3.safetensors")


def drop_weights(model: Path) -> None:
    (model / "model-2.safetensors").unlink()


def exchange_files(model: Path) -> None:
    one, two = model / "model-1.safetensors", model / "model-2.safetensors"
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])


@pytest.mark.parametrize("change", [change_a_weight, add_weights, drop_weights, exchange_files])
def test_a_calibration_of_other_weights_is_refused_by_name(change: object, calibrated: Path) -> None:
    assert callable(change)
    change(calibrated)
    with pytest.raises(InputError, match=r"calibration\.json: was fitted on other weights -> run student-calibrate"):
        read_calibration(calibrated)


def test_other_files_beside_the_weights_do_not_matter(calibrated: Path) -> None:
    (calibrated / "config.json").write_text("{}")
    assert read_calibration(calibrated) is not None


@pytest.mark.parametrize("write", [True, False])
def test_a_model_without_weights_is_refused(write: bool, calibrated: Path) -> None:
    for file in calibrated.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="no weights"):
        if write:
            write_calibration(calibrated, {"temperature": 1.0}, VIEWS)
        else:
            read_calibration(calibrated)


BROKEN = ["", "{", "[1]", "null", "{}", '{"temperature": 0}', '{"temperature": "2"}', '{"temperature": NaN}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_refused_by_name(content: str, calibrated: Path) -> None:
    (calibrated / CALIBRATION_FILE).write_text(content)
    with pytest.raises(InputError, match=r"calibration\.json: .* -> "):
        read_calibration(calibrated)


@pytest.mark.parametrize("fields", [{"views": 512}, {"views": True}, {"weights_sha256": 7}, {"weights_sha256": []}])
def test_a_file_with_fields_of_other_types_is_refused_or_read_but_never_a_traceback(
    fields: dict[str, object], calibrated: Path
) -> None:
    (calibrated / CALIBRATION_FILE).write_text(json.dumps({"temperature": 1.5, **fields}))
    try:
        saved = read_calibration(calibrated)
    except InputError as error:
        assert str(error).startswith(str(calibrated / CALIBRATION_FILE))
    else:
        assert saved is not None and saved.temperature == 1.5


def test_a_temperature_written_by_hand_is_taken_without_views_or_weights(model: Path) -> None:
    (model / CALIBRATION_FILE).write_text("\ufeff" + json.dumps({"temperature": 1.5}), "utf-8")
    saved = read_calibration(model)
    assert saved is not None and (saved.temperature, saved.views) == (1.5, ())
