from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from arena_distill.data.loading import load_labels, load_test
from arena_distill.data.prompts import View
from arena_distill.data.records import SWAPPED
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.classwise import confusion_matrix
from arena_distill.evaluation.evaluate_submission import evaluate
from arena_distill.evaluation.evaluation_file import changed_files, read_evaluation
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.evaluation.metrics import kaggle_log_loss, score, softmax, swap_gap
from arena_distill.evaluation.scoreboard import read_truth
from arena_distill.evaluation.submission import read_submission, write_submission
from arena_distill.evaluation.submission_ensemble import ensemble_files, manifest_path
from arena_distill.runtime.artifacts import sha256_file, write_manifest
from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, ArenaError, InputError
from tests.conftest import REPOSITORY, SAMPLE

ROWS = 120
VIEWS = [View(64), View(64, True), View(128), View(128, True)]
TEMPERATURE = 1.3


def head(name: str, into: Path) -> None:
    with (SAMPLE / name).open(newline="") as source, (into / name).open("w", newline="") as out:
        csv.writer(out).writerows(row for number, row in enumerate(csv.reader(source)) if number <= ROWS)


class Site:
    """A test file with votes and truth, and what step 8 and another judge say of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root / "out", root / "data"
        self.data.mkdir(parents=True)
        head("test.csv", self.data)
        head("test_labels.csv", self.data)
        shutil.copy(SAMPLE / "truth.parquet", self.data)
        self.test = self.data / "test.csv"
        self.ids: list[str] = load_test(self.test).rows["id"].to_pylist()
        self.votes = load_labels(self.data / "test_labels.csv", self.ids)
        self.truth = read_truth(self.data / "truth.parquet", self.ids)
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 0.6, size=(len(VIEWS), ROWS, 3))
        self.logits = (0.7 * np.log(self.truth + 0.02)[None] + noise).astype(np.float32)
        self.step8, self.other = self.sub("final_submission.csv"), self.sub("other.csv")
        self.write_step8()
        write_submission(self.other, self.ids, rng.dirichlet(np.ones(3), size=ROWS))
        self.ensemble()

    def sub(self, name: str) -> Path:
        return self.root / "sub" / f"x_{name}"

    @property
    def out(self) -> Path:
        return self.sub("evaluation.json")

    def manifest(self, path: Path, test: Path, **details: Any) -> None:
        inputs = {"test_csv": sha256_file(test)}
        known: dict[str, Any] = {"stage": "s", "settings": {}, "inputs": inputs, "started": 0.0, "details": details}
        write_manifest(path, path=manifest_path(path), **known)

    def write_step8(self) -> None:
        write_submission(self.step8, self.ids, view_probabilities(self.logits, TEMPERATURE))
        columns = {
            "id": self.ids * len(VIEWS),
            "max_length": pa.array(np.repeat([view.max_length for view in VIEWS], ROWS), pa.int32()),
            "swapped": np.repeat([view.swap for view in VIEWS], ROWS),
        }
        names = ("logit_model_a", "logit_model_b", "logit_tie")
        table = pa.table(columns | {name: self.logits[:, :, k].ravel() for k, name in enumerate(names)})
        pq.write_table(table, self.step8.with_suffix(".logits.parquet"))
        self.manifest(self.step8, self.test, temperature=TEMPERATURE)

    def ensemble(self, *members: Path, weights: str | None = None) -> None:
        paths = list(members) or [self.step8, self.other]
        weights = weights if members else "3,1"
        out = self.sub("final_ensemble.csv")
        ensemble_files(out, paths, weights=weights, space="mean", test_csv=None, started=0.0)

    def settings(self, **more: Any) -> EvaluationSettings:
        usual = {"output_dir": self.root, "run": "x", "test_csv": str(self.test), "evaluation_resamples": 100}
        return EvaluationSettings(**(usual | more))

    def evaluate(self, **more: Any) -> dict[str, Any]:
        evaluate(self.settings(**more))
        document = read_evaluation(self.out)
        assert document is not None
        return document

    def refuses(self, problem: str, error: type[ArenaError] = InputError, **more: Any) -> None:
        """It raises ``error``, and every file stays as it was, with none beside them."""
        before = self.contents()
        with pytest.raises(error, match=problem):
            evaluate(self.settings(**more))
        assert self.contents() == before

    def contents(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, Any]]:
    """With everything at hand; not to be changed."""
    site = Site(tmp_path_factory.mktemp("evaluated"))
    return site, site.evaluate(train_csv=str(SAMPLE / "train.csv"))


def same(figures: dict[str, Any], probabilities: np.ndarray, votes: np.ndarray) -> None:
    for name, value in score(probabilities, votes).as_dict().items():
        found = figures[name]["value"] if isinstance(figures[name], dict) else figures[name]
        assert found == pytest.approx(value, abs=1e-9)


# The document


def test_every_file_that_it_was_computed_from_is_named_with_its_hash(evaluated: tuple[Site, dict[str, Any]]) -> None:
    site, document = evaluated
    assert {site.root / name for name in document["files"]} == {
        *(site.sub(f"final_ensemble{end}") for end in (".csv", ".manifest.json")),
        *(site.sub(f"final_submission{end}") for end in (".csv", ".manifest.json", ".logits.parquet")),
        site.other,
        *(site.data / name for name in ("test.csv", "test_labels.csv", "truth.parquet")),
        SAMPLE / "train.csv",
    }
    assert document["submission"] == "sub/x_final_ensemble.csv", "relative to the output directory"
    assert all(sha256_file(site.root / name) == digest for name, digest in document["files"].items())
    assert changed_files(document, site.root) == []


def test_the_scores_are_those_of_the_files_that_it_names(evaluated: tuple[Site, dict[str, Any]]) -> None:
    site, document = evaluated
    ids = load_test(site.root / document["test"]).rows["id"].to_pylist()
    p = read_submission(site.root / document["submission"], ids)[1]
    votes = load_labels(site.root / document["labels"], ids)
    same(document["scores"] | {"rows": document["rows"]}, p, votes)
    for interval in document["scores"].values():
        assert interval["low"] < interval["value"] < interval["high"]
    assert document["confusion"] == confusion_matrix(p, votes).tolist()
    assert [figures["class"] for figures in document["per_class"]] == ["model_a", "model_b", "tie"]
    assert document["expected_log_loss"]["value"] == pytest.approx(kaggle_log_loss(p, site.truth))
    same(document["truth"], site.truth, votes)
    assert document["truth"]["expected_log_loss"] < document["expected_log_loss"]["value"]
    weights = [member["weight"] for member in document["members"]]
    assert weights == [0.75, 0.25]
    members = [read_submission(site.root / member["file"], ids)[1] for member in document["members"]]
    for member, q in zip(document["members"], members, strict=True):
        same(member, q, votes)
    np.testing.assert_allclose(np.tensordot(weights, members, axes=1), p, atol=1e-12)


def test_biases_calibration_and_views_are_those_of_the_logits(evaluated: tuple[Site, dict[str, Any]]) -> None:
    site, document = evaluated
    calibrated = softmax(site.logits, TEMPERATURE)
    for name, temperature in (("before", 1.0), ("after", TEMPERATURE)):
        scores = score(view_probabilities(site.logits, temperature), site.votes)
        found = document["calibration"][name]
        assert (found["log_loss"], found["ece"], found["brier"]) == (scores.log_loss, scores.ece, scores.brier)
    assert document["calibration"]["temperature"] == TEMPERATURE
    expected = swap_gap(calibrated[[0, 2]].mean(axis=0), calibrated[[1, 3]].mean(axis=0)[:, SWAPPED])
    assert document["position_bias"]["swap_gap"]["value"] == pytest.approx(expected)
    entries = {tuple(entry["views"]): entry for entry in document["tta"]}
    singles = ["64", "64 swapped", "128", "128 swapped"]
    assert list(entries) == [*((name,) for name in singles), tuple(singles[:2]), tuple(singles[2:]), tuple(singles)]
    for names, entry in entries.items():
        same(entry, calibrated[[singles.index(name) for name in names]].mean(axis=0), site.votes)


def test_the_baselines_are_fitted_on_the_training_rows_and_compared_on_the_same_draws(
    evaluated: tuple[Site, dict[str, Any]],
) -> None:
    _, document = evaluated
    assert list(document["baselines"]) == ["constant prior", "length", "TF-IDF"]
    own = document["scores"]["log_loss"]["value"]
    for figures in document["baselines"].values():
        difference = figures["difference"]
        assert difference["value"] == pytest.approx(own - figures["log_loss"], abs=1e-9)
        assert difference["low"] < difference["value"] < difference["high"]


def test_the_slices_divide_all_rows_in_every_way(evaluated: tuple[Site, dict[str, Any]]) -> None:
    _, document = evaluated
    assert {"length", "language", "turns"} <= set(document["slices"])
    for slices in document["slices"].values():
        assert sum(one["rows"] for one in slices) == ROWS
        mean = sum(one["rows"] * one["log_loss"]["value"] for one in slices) / ROWS
        assert mean == pytest.approx(document["scores"]["log_loss"]["value"], abs=1e-9)


def test_the_tables_show_what_the_file_holds(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    document = site.evaluate()
    printed = capsys.readouterr().out
    for figure in (
        document["scores"]["log_loss"]["value"],
        document["scores"]["ece"]["high"],
        document["per_class"][2]["recall"],
        document["slices"]["turns"][0]["accuracy"]["low"],
        document["position_bias"]["swap_gap"]["value"],
        document["calibration"]["before"]["log_loss"],
        document["tta"][-1]["brier"],
        document["members"][1]["log_loss"],
    ):
        assert f"{figure:.4f}" in printed
    assert "few rows" in printed and "x_other.csv (weight 0.2500)" in printed
    assert str(site.out) in printed.splitlines()[-1]


def test_what_is_not_at_hand_is_null(site: Site) -> None:
    (site.data / "truth.parquet").unlink()
    document = site.evaluate(submission=str(site.other), train_csv="none", evaluation_logits="none")
    for name in ("truth", "expected_log_loss", "position_bias", "calibration", "tta", "logits"):
        assert document[name] is None
    assert document["baselines"] == {} and document["members"] == []


def test_rows_of_one_prompt_are_scored_without_intervals(tmp_path: Path) -> None:
    test, labels = tmp_path / "test.csv", tmp_path / "test_labels.csv"
    test.write_text("id,prompt,response_a,response_b\n1,p,a,b\n2,p,c,d\n")
    labels.write_text("id,winner\n1,model_a\n2,tie\n")
    write_submission(tmp_path / "s.csv", ["1", "2"], np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    values = {"output_dir": tmp_path, "test_csv": str(test), "submission": str(tmp_path / "s.csv")}
    evaluate(EvaluationSettings(**values))
    document = json.loads((tmp_path / "sub" / "evaluation.json").read_text())
    assert document["scores"]["log_loss"] == {"value": pytest.approx(-np.log([0.5, 0.6]).mean()), "low": None} | {
        "high": None
    }


# What belongs together


def test_a_submission_with_the_wrong_rows_or_no_numbers_is_refused_by_name(site: Site) -> None:
    site.evaluate()
    good = site.other.read_text().splitlines()
    (site.root / "sub" / "x_final_ensemble.manifest.json").unlink()
    for lines, problem in (
        (good[:-1], f"1 of {ROWS} ids are missing"),
        ([*good, "new,1,0,0"], "1 ids are not in the test file, the first 'new'"),
        ([*good, good[1]], "stands in row 1 already"),
        ([*good[:5], good[5].split(",")[0] + ",nan,0,1", *good[6:]], "row 5, column 'winner_model_a': nan"),
        ([*good[:5], good[5][: len(good[5]) // 2]], "row 5"),
    ):
        site.sub("final_ensemble.csv").write_text("\n".join(lines) + "\n")
        site.refuses(rf"x_final_ensemble\.csv.*{problem}")


def test_labels_that_lack_a_row_have_one_twice_or_a_truth_of_others_are_refused(site: Site) -> None:
    labels = site.data / "test_labels.csv"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]) + "\n")
    site.refuses(rf"test_labels\.csv: has no row for id '{site.ids[-1]}' \(1 missing\)")
    labels.write_text("\n".join([*lines, lines[1]]) + "\n")
    site.refuses(r"test_labels\.csv, row 121")
    labels.write_text("\n".join(lines) + "\n")
    table = pq.read_table(site.data / "truth.parquet")
    pq.write_table(table.filter(pc.not_equal(table["id"], int(site.ids[7]))), site.data / "truth.parquet")
    site.refuses(r"truth\.parquet.*1 of 120 ids are missing")


def test_a_member_that_changed_or_is_gone_is_refused(site: Site) -> None:
    site.evaluate()
    write_submission(site.other, site.ids, np.full((ROWS, 3), 1 / 3))
    site.refuses(r"x_other\.csv: has changed since .*x_final_ensemble\.csv was made of it -> make the ensemble again")
    site.other.unlink()
    site.refuses(r"x_other\.csv: .* was made of it, and it is gone")


def test_an_ensemble_that_is_not_what_its_manifest_is_of_is_scored_without_members(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    write_submission(site.sub("final_ensemble.csv"), site.ids, np.full((ROWS, 3), 1 / 3))
    document = site.evaluate()
    assert document["members"] == [] and document["scores"]["log_loss"]["value"] == pytest.approx(np.log(3))
    assert "x_final_ensemble.csv is not the file that its manifest is of" in capsys.readouterr().out


def test_predictions_of_another_test_file_with_the_same_ids_are_refused(site: Site) -> None:
    other = site.data / "other.csv"
    other.write_text(site.test.read_text().replace("a", "b"))
    for path in (site.step8, site.other):
        site.write_step8()
        site.manifest(site.other, site.test)
        site.manifest(path, other, temperature=TEMPERATURE)
        site.refuses(rf"{path.name}: predicts another test file than .*test\.csv -> give .* with TEST_CSV")


def test_logits_that_are_not_of_the_submission_are_left_out_unless_they_are_asked_for(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.ensemble(site.other)
    document = site.evaluate()
    assert document["position_bias"] is None and document["tta"] is None
    assert "x_final_submission.logits.parquet is not of this submission" in capsys.readouterr().out
    path = site.step8.with_suffix(".logits.parquet")
    asked = site.evaluate(evaluation_logits=str(path))
    assert asked["position_bias"] is not None and asked["logits"] == "sub/x_final_submission.logits.parquet"
    assert [member["file"] for member in asked["members"]] == ["sub/x_other.csv"]


def test_logits_of_another_run_are_refused_and_an_older_evaluation_stays(site: Site) -> None:
    site.evaluate()
    site.manifest(site.step8, site.test, temperature=TEMPERATURE + 0.1)
    site.refuses(r"x_final_submission\.csv: is not what .*logits\.parquet gives at the temperature 1\.4")
    site.refuses(r"nowhere\.logits\.parquet: no such file", evaluation_logits="nowhere.logits.parquet")
    assert site.evaluate(evaluation_logits="none")["calibration"] is None


def test_training_rows_that_are_the_test_rows_are_refused_and_shared_prompts_are_said(site: Site) -> None:
    with site.test.open(newline="") as file:
        test = list(csv.DictReader(file))
    with (SAMPLE / "train.csv").open(newline="") as file:
        train = list(csv.DictReader(file))
    names = ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie")
    labels = dict(zip(names[3:], "100", strict=True))

    def write(rows: list[dict[str, str]]) -> str:
        path = site.data / "train.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return str(path)

    known = [row | labels for row in test]
    problem = rf"train\.csv: holds 61 of the {ROWS} rows of .*test\.csv.* -> give other training rows with TRAIN_CSV"
    site.refuses(problem, train_csv=write(known[:61]))
    document = site.evaluate(train_csv=write([*train[:60], *known[:2]]))
    assert any(note.endswith("2 of them with the same answers") for note in document["notes"])


def test_an_output_that_would_overwrite_an_input_is_refused(site: Site) -> None:
    for path in (site.test, site.other, site.step8.with_suffix(".manifest.json")):
        site.refuses(r"would overwrite the input", evaluation_out=str(path))
    site.refuses("cannot be written there", evaluation_out=str(site.data))


# Without votes


def test_without_votes_it_says_so_and_does_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = site.contents()
    evaluate(site.settings(labels_csv="none"))
    (site.data / "test_labels.csv").unlink()
    evaluate(site.settings())
    printed = capsys.readouterr().out
    assert printed.count("no votes on ") == 2 and printed.count("\n") == 2
    assert site.contents() == before
    site.refuses(r"LABELS_CSV=nowhere\.csv: no such file", labels_csv="nowhere.csv")
    site.refuses(r"TEST_CSV=nowhere\.csv: no such file", test_csv="nowhere.csv")


def test_without_any_test_file_there_are_no_votes_either(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.root)
    evaluate(site.settings(test_csv=""))
    assert capsys.readouterr().out.startswith("no votes at hand")
    assert not site.out.exists()


def test_without_votes_an_evaluation_of_earlier_files_is_pointed_out(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    document = site.evaluate()
    evaluate(site.settings(labels_csv="none"))
    assert "is of earlier files" not in capsys.readouterr().out
    site.ensemble(site.other)
    assert "sub/x_final_ensemble.csv" in changed_files(document, site.root)
    evaluate(site.settings(labels_csv="none"))
    assert f"{site.out} is of earlier files" in capsys.readouterr().out


# Twice


def test_finished_work_is_not_done_twice_unless_something_changed(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(**more: Any) -> tuple[str, dict[str, Any]]:
        document = site.evaluate(**more)
        return capsys.readouterr().out.splitlines()[-1], document

    said, first = again()
    assert "written in" in said
    before = site.contents()
    assert again() == (f"{site.out}: up to date", first)
    assert site.contents() == before
    assert "written in" in again(force=True)[0]
    assert "written in" in again(evaluation_resamples=101)[0]
    site.out.write_text(site.out.read_text().replace("0", "1", 1))
    assert "written in" in again()[0], "a file that somebody has touched is no evaluation"
    site.manifest(site.other, site.test)  # a manifest that was not there
    said, document = again()
    assert said.endswith("up to date") and changed_files(document, site.root) == []
    site.ensemble()  # the same once more: its manifest alone is another
    said, document = again()
    assert said.endswith("up to date") and changed_files(document, site.root) == []
    site.ensemble(site.step8, site.other, weights="1,1")
    said, document = again()
    assert "written in" in said and [member["weight"] for member in document["members"]] == [0.5, 0.5]


# The script


def run_script(*arguments: str | Path, python: tuple[str, ...] = (), **variables: str) -> Any:
    command = [sys.executable, *python, REPOSITORY / "scripts" / "evaluate.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)


def test_exit_codes_of_the_script_and_settings_from_the_environment(site: Site) -> None:
    place = {"OUTPUT_DIR": str(site.root), "RUN": "x", "TEST_CSV": str(site.test), "EVALUATION_RESAMPLES": "100"}
    done = run_script(**place)
    assert done.returncode == 0, done.stderr
    assert site.out.is_file() and manifest_path(site.out).is_file()
    for arguments, variables, code, problem in (
        (["--submission", "nowhere.csv"], {}, EXIT_BAD_INPUT, "nowhere.csv: no such file -> make it"),
        (["--labels-csv", "nowhere.csv"], {}, EXIT_BAD_INPUT, "LABELS_CSV=nowhere.csv: no such file"),
        (["--train-csv", "nowhere.csv"], {}, EXIT_BAD_INPUT, "TRAIN_CSV=nowhere.csv: no such file"),
        (["--evaluation-resamples", "5"], {}, EXIT_BAD_SETTINGS, "greater than or equal to 100"),
        (["--resamples", "500"], {}, EXIT_BAD_SETTINGS, "unknown flag --resamples"),
        ([], {"EVALUATION_RESAMPELS": "500"}, EXIT_BAD_SETTINGS, "did you mean EVALUATION_RESAMPLES?"),
    ):
        done = run_script(*arguments, **(place | variables))
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert problem in done.stderr


def test_neither_the_evaluation_nor_its_help_waits_for_torch(site: Site) -> None:
    place = ["--output-dir", site.root, "--run", "x", "--test-csv", site.test, "--train-csv", SAMPLE / "train.csv"]
    for arguments, absent in ((["--help"], {"torch", "scipy", "sklearn", "transformers"}), (place, {"torch"})):
        done = run_script(*arguments, python=("-X", "importtime"))
        assert done.returncode == 0, done.stderr[-2000:]
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "pydantic" in imported and not imported & absent
