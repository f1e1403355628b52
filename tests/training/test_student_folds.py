"""Students of folds: which rows train, choose and score, what is said of the score, and finding them again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from arena_distill.data.folds import grouped_stratified_folds, load_folds
from arena_distill.data.loading import load_labelled, load_test
from arena_distill.data.records import Rows, targets
from arena_distill.data.splits import scoring_half
from arena_distill.evaluation.calibration import fit_temperature
from arena_distill.evaluation.heldout import HELDOUT_FILE, read_heldout
from arena_distill.evaluation.metrics import kaggle_log_loss, softmax
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference.judge import load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.errors import DataError, InputError
from arena_distill.training.student_modes import SECOND_ORDER_LEAK
from tests.training.distill_runs import teacher_logits
from tests.training.student_runs import quick_settings, run_mode
from tests.training.teacher_runs import contents, manifest_of, step2

N_FOLDS, SEED = 3, 42
FOLDS = (0, 2)
LENGTH = 48
RUN = "x"
WEIGHTS = "model.safetensors"

Settings = dict[str, object]


@dataclass(frozen=True)
class Site:
    """Distilled students of two of three folds, calibrated; not to be changed."""

    settings: Settings  # but for the fold
    root: Path
    rows: Rows  # of the base file
    fold_of_row: np.ndarray  # as step 2 wrote it

    def directory(self, fold: int, run: str = RUN) -> Path:
        return self.root / "model_save" / run / f"student_distilbert_fold_{fold}"

    def held_out(self, fold: int) -> tuple[Rows, Rows]:
        """The rows of a fold: those that choose the checkpoint, and those that score."""
        rows = self.rows.take(np.flatnonzero(self.fold_of_row == fold))
        scoring = scoring_half(rows, SEED, Path())
        return rows.take(np.flatnonzero(~scoring)), rows.take(np.flatnonzero(scoring))

    def logits(self, fold: int, rows: Rows) -> np.ndarray:
        """What the student says of ``rows`` in both orders of the answers, ``[2, N, 3]``."""
        judge = load_judge(self.directory(fold), max_length=LENGTH)
        return judge.view_logits(rows, tta_views([LENGTH], swap=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, small_train_csv: Path, backbones: Path) -> Site:
    root = tmp_path_factory.mktemp("folds")
    rows = load_labelled(small_train_csv).rows
    np.save(root / "teacher.npy", teacher_logits(rows)["llama"])
    # A base without a head of three labels: the students' heads are drawn, and should be drawn alike.
    settings: Settings = quick_settings(small_train_csv, backbones / "llama", root) | {
        "student_max_steps": 6,
        "student_max_length": LENGTH,
        "distill_teachers": root / "teacher.npy",
        "cv_num_folds": N_FOLDS,
        "output_dir": root,
        "run": RUN,
    }
    del settings["student_output_model_dir"]
    for fold in FOLDS:
        run_mode("student-distill-train", **settings, cv_fold_idx=fold)
        run_mode("student-calibrate", **settings, cv_fold_idx=fold)
    step2(train_csv=small_train_csv, n_folds=N_FOLDS, output_dir=root)
    folds = load_folds(root / "data" / "processed_data" / f"folds_{N_FOLDS}_seed{SEED}.json")
    return Site(settings, root, rows, np.asarray(folds.fold))


def calibration_of(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "calibration.json").read_text("utf-8"))
    return document


def ids(rows: Rows) -> set[int]:
    return set(rows["base_idx"].to_pylist())


# Which rows


@pytest.mark.parametrize("fold", FOLDS)
def test_the_student_of_a_fold_is_kept_from_the_rows_that_step_2_holds_out(site: Site, fold: int) -> None:
    split = json.loads((site.directory(fold) / "split.json").read_text())
    choosing, scoring = site.held_out(fold)
    assert set(split["calibration_base_idx"]) == ids(choosing)
    assert set(split["holdout_base_idx"]) == ids(scoring)
    parts = [site.rows.take(np.flatnonzero(site.fold_of_row != fold)), choosing, scoring]
    counted = manifest_of(site.directory(fold))["rows"]
    assert [counted[name] for name in ("train", "calibration", "holdout")] == list(map(len, parts))
    prompts = [set(part["prompt_hash"].to_pylist()) for part in parts]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


def test_other_answers_in_held_out_rows_change_no_weight_and_in_training_rows_they_do(
    site: Site, small_train_csv: Path, tmp_path: Path
) -> None:
    fold, weights = 1, {}
    held_out = site.fold_of_row == fold
    lines_to_change = {
        "nowhere": [],
        "held out": np.flatnonzero(held_out).tolist(),
        "training": np.flatnonzero(~held_out).tolist(),
    }
    for name, changed in lines_to_change.items():
        train_csv = tmp_path / f"{name}.csv"
        with small_train_csv.open(newline="", encoding="utf-8") as source:
            reader = csv.DictReader(source)
            lines = list(reader)
        assert len(lines) == len(site.rows), "line K of the file is row K"
        for number in changed:
            lines[number] |= {"response_a": "Nothing of the kind", "response_b": "Something quite different"}
        with train_csv.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, reader.fieldnames or ())
            writer.writeheader()
            writer.writerows(lines)
        one_evaluation = {"train_csv": train_csv, "student_max_steps": 4, "output_dir": tmp_path, "run": name[:4]}
        run_mode("student-distill-train", **{**site.settings, **one_evaluation}, cv_fold_idx=fold)
        directory = tmp_path / "model_save" / name[:4] / f"student_distilbert_fold_{fold}"
        weights[name] = (directory / WEIGHTS).read_bytes()
    assert weights["held out"] == weights["nowhere"]
    assert weights["training"] != weights["nowhere"]


# What the directory says


def test_students_of_all_folds_start_from_the_same_weights_and_end_with_others(site: Site) -> None:
    one, two = (manifest_of(site.directory(fold)) for fold in FOLDS)
    assert one["fresh_head"] and two["fresh_head"]
    assert one["initial_sha256"] == two["initial_sha256"] and len(one["initial_sha256"]) == 64
    assert one["outputs"][WEIGHTS] != two["outputs"][WEIGHTS]


@pytest.mark.parametrize("fold", FOLDS)
def test_the_manifest_names_fold_teachers_and_length(site: Site, fold: int) -> None:
    manifest = manifest_of(site.directory(fold))
    assert (manifest["fold"], manifest["n_folds"]) == (fold, N_FOLDS)
    assert (manifest["teachers"], manifest["max_length"]) == (["teacher"], LENGTH)
    assert manifest["rows"]["with_teacher_labels"] == manifest["rows"]["train"] > 100


# Calibration


@pytest.mark.filterwarnings("ignore::arena_distill.evaluation.calibration.TemperatureBoundWarning")
@pytest.mark.parametrize("fold", FOLDS)
def test_every_scoring_row_is_judged_with_a_temperature_that_did_not_see_it(site: Site, fold: int) -> None:
    report, rows = calibration_of(site.directory(fold)), site.held_out(fold)[1]
    logits, votes = site.logits(fold, rows), targets(rows)
    assert report["temperature"] == pytest.approx(fit_temperature(logits, votes), rel=1e-6)
    prompts = rows["prompt_hash"].to_numpy()
    part = grouped_stratified_folds(votes.argmax(axis=1), prompts, 5, SEED)
    expected = np.empty((len(rows), 3))
    temperatures = set()
    for number in range(5):
        here = part == number
        assert here.any() and not set(prompts[here]) & set(prompts[~here])
        temperature = fit_temperature(logits[:, ~here], votes[~here])
        expected[here] = softmax(logits[:, here] / temperature).mean(axis=0)
        temperatures.add(round(temperature, 6))
    assert len(temperatures) > 1, "with one temperature for all there would be nothing to tell apart"
    before, in_sample = (softmax(logits / t).mean(axis=0) for t in (1.0, report["temperature"]))
    for name, probabilities in (
        ("logloss_holdout_before", before),
        ("logloss_holdout_after", expected),
        ("logloss_cal_before", before),
        ("logloss_cal_after", in_sample),
    ):
        assert report[name] == pytest.approx(kaggle_log_loss(probabilities, votes), abs=1e-6), name
    for name in ("logloss_cal", "logloss_holdout", "nll_cal", "nll_holdout"):
        difference = report[f"{name}_before"] - report[f"{name}_after"]
        assert report[f"{name}_improvement"] == pytest.approx(difference, abs=1e-9)
    assert report["rows_holdout"] == len(rows)
    held_out = read_heldout(site.directory(fold) / HELDOUT_FILE)
    np.testing.assert_allclose(held_out.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("fold", FOLDS)
def test_the_held_out_predictions_are_of_exactly_the_rows_that_only_score(site: Site, fold: int) -> None:
    rows = site.held_out(fold)[1]
    held_out = read_heldout(site.directory(fold) / HELDOUT_FILE)
    assert held_out.base_idx.tolist() == rows["base_idx"].to_pylist()
    assert held_out.row_hash == rows["row_hash"].to_pylist()
    assert held_out.ids == rows["id"].to_pylist()
    np.testing.assert_array_equal(held_out.targets, targets(rows))


# The modes after training


def figures(directory: Path) -> Mapping[str, float]:
    """The numbers of calibration.json."""
    return {name: value for name, value in calibration_of(directory).items() if isinstance(value, float)}


def test_eval_holdout_prints_the_same_score_and_the_leak_of_the_teachers(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = 2
    before = figures(site.directory(fold))
    run_mode("student-eval-holdout", **site.settings, cv_fold_idx=fold)
    out = capsys.readouterr().out
    for name in ("constant prior", "length", "TF-IDF", "student", "student, calibrated"):
        assert any(line.startswith(name) for line in out.splitlines()), name
    assert SECOND_ORDER_LEAK in out
    assert figures(site.directory(fold)) == pytest.approx(before, abs=1e-9)


def test_a_student_of_votes_alone_has_no_leak_to_warn_of(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    settings = site.settings | {"run": "votes", "cv_fold_idx": 0}
    for mode in ("student-train", "student-calibrate", "student-eval-holdout"):
        run_mode(mode, **settings)
    out = capsys.readouterr().out
    assert any(line.startswith("student, calibrated") for line in out.splitlines())
    assert SECOND_ORDER_LEAK not in out
    manifest = manifest_of(site.directory(0, "votes"))
    assert (manifest["fold"], manifest["teachers"]) == (0, None)
    assert manifest["initial_sha256"] == manifest_of(site.directory(0))["initial_sha256"]


@pytest.mark.parametrize("fold", FOLDS)
def test_infer_writes_the_folds_submission_with_the_folds_temperature(
    fold: int, site: Site, small_test_csv: Path
) -> None:
    run_mode("student-infer", **site.settings, cv_fold_idx=fold, test_csv=small_test_csv)
    path = site.root / "sub" / f"{RUN}_student_submission_fold_{fold}.csv"
    rows = load_test(small_test_csv).rows
    _, probabilities = read_submission(path, rows["id"].to_pylist())
    temperature = calibration_of(site.directory(fold))["temperature"]
    assert abs(temperature - 1) > 0.01, "at temperature 1 this test would show nothing"
    np.testing.assert_allclose(probabilities, softmax(site.logits(fold, rows) / temperature).mean(axis=0), atol=1e-6)
    assert json.loads(path.with_suffix(".manifest.json").read_text())["temperature"] == temperature


def copy_of(site: Site, root: Path) -> Site:
    shutil.copytree(site.root / "model_save", root / "model_save")
    return Site(site.settings | {"output_dir": root}, root, site.rows, site.fold_of_row)


def test_later_modes_find_a_fold_and_its_rows_whatever_else_they_are_told(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of folds, the seed and the rows are the student's own; the command line only says which student."""
    fold = 2
    own = copy_of(site, tmp_path)
    directory = own.directory(fold)
    expected = {name: (directory / name).read_bytes() for name in ("calibration.json", HELDOUT_FILE)}
    few = {name: site.settings[name] for name in ("train_csv",)}
    for settings in (
        few | {"output_dir": tmp_path, "run": RUN, "cv_fold_idx": fold},
        few | {"output_dir": tmp_path, "run": RUN, "cv_fold_idx": fold, "cv_num_folds": 7, "seed": 5},
        few | {"student_output_model_dir": directory},
        few | {"student_output_model_dir": directory, "cv_fold_idx": 0, "student_max_samples": 9},
    ):
        for name in expected:
            (directory / name).unlink()
        run_mode("student-calibrate", **settings)
        assert {name: (directory / name).read_bytes() for name in expected} == expected, settings
        run_mode("student-eval-holdout", **settings)
        assert SECOND_ORDER_LEAK in capsys.readouterr().out


def test_a_fold_that_was_not_trained_is_named(site: Site, small_test_csv: Path, tmp_path: Path) -> None:
    for mode in ("student-calibrate", "student-eval-holdout", "student-infer"):
        with pytest.raises(InputError, match=r"student_distilbert_fold_1: no finished student there"):
            run_mode(mode, **site.settings, cv_fold_idx=1, test_csv=small_test_csv)
    assert not (site.root / "sub" / f"{RUN}_student_submission_fold_1.csv").exists()


def test_a_file_with_fewer_prompts_than_folds_is_refused_before_anything_is_written(site: Site, tmp_path: Path) -> None:
    short = tmp_path / "short.csv"
    with Path(str(site.settings["train_csv"])).open(newline="", encoding="utf-8") as source:
        lines = list(csv.reader(source))[:6]
    with short.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(lines)
    settings = site.settings | {"train_csv": short, "output_dir": tmp_path, "cv_num_folds": 50, "cv_fold_idx": 49}
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"short\.csv: has 5 distinct prompts for 50 folds"):
        run_mode("student-train", **settings)
    assert contents(tmp_path) == before


def test_training_rows_that_are_left_out_move_nothing_into_or_out_of_a_fold(site: Site, tmp_path: Path) -> None:
    settings = site.settings | {"output_dir": tmp_path, "student_max_samples": 20, "student_max_steps": 1}
    run_mode("student-distill-train", **settings, cv_fold_idx=0)
    directory = tmp_path / "model_save" / RUN / "student_distilbert_fold_0"
    assert (directory / "split.json").read_bytes() == (site.directory(0) / "split.json").read_bytes()
    assert manifest_of(directory)["rows"]["train"] == 20
    own, whole = (load_file(place / WEIGHTS) for place in (directory, site.directory(0)))
    assert own.keys() == whole.keys()
