"""``scripts/compare_runs.py`` on real students: its figures against plain transformers, its refusals by message."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_distill.data.loading import load_labels, load_test
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SWAPPED, Rows
from arena_distill.evaluation.scoreboard import read_truth
from arena_distill.inference.compared_runs import SECOND_ORDER_LEAK, compare_runs, find_groups
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import DataError, InputError, SettingsError
from tests.conftest import SAMPLE
from tests.training.student_runs import REPOSITORY, run_mode

LABELS, TRUTH = SAMPLE / "test_labels.csv", SAMPLE / "truth.parquet"
RESAMPLES = 200
SHARP = 0.25  # temperature that lets a timid student speak up


def edit_json(file: Path, **change: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.fixture(scope="module")
def place(student: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory with the runs ``single`` and ``other`` (not calibrated), and ``folds`` and ``distilled``
    that have the same two students as their folds."""
    place = tmp_path_factory.mktemp("compared")
    first, second = Path(str(student["student_output_model_dir"])), place / "second"
    eager = {"seed": 7, "student_epochs": 8, "student_learning_rate": 3e-3, "student_early_stopping": 0}
    run_mode("student-train", **student | eager | {"student_output_model_dir": second})
    shutil.copytree(first, place / "model_save" / "single" / "student_distilbert")
    shutil.copytree(second, place / "model_save" / "other" / "student_distilbert")
    for run, teachers in (("folds", None), ("distilled", ["llama3-8b", "qwen2-7b"])):
        for fold, source in enumerate((first, second)):
            copy = place / "model_save" / run / f"student_distilbert_fold_{fold}"
            shutil.copytree(source, copy)
            edit_json(copy / "manifest.json", n_folds=2, fold=fold, teachers=teachers, max_length=48)
    shutil.copy(first / "calibration.json", place / "temperature.json")
    for run in ("folds", "distilled"):
        copy = place / "model_save" / run / "student_distilbert_fold_1" / "calibration.json"
        copy.write_text(json.dumps({"temperature": SHARP, "logloss_holdout_after": 1.25, "rows_holdout": 30}))
    return place


def report(place: Path, *runs: str, **change: Any) -> str:
    options: dict[str, Any] = {
        "test_csv": SAMPLE / "test.csv",
        "labels_csv": LABELS,
        "output_dir": place,
        "resamples": RESAMPLES,
    }
    return compare_runs(runs, **options | change)


def plain_probabilities(directory: Path, rows: Rows, max_length: int, temperature: float) -> np.ndarray:
    """``[2, N, 3]`` by transformers alone, one row at a time; the second order by really swapping the columns."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer, layout = AutoTokenizer.from_pretrained(directory), TextFormat.load(directory)
    names = ["response_b" if n == "response_a" else "response_a" if n == "response_b" else n for n in rows.column_names]
    logits = []
    for table in (rows, rows.rename_columns(names)):
        sequences, number = assemble(tokenize_rows(table, tokenizer), layout, [View(max_length)])
        assert sequences.segment_ids is not None
        out = []
        for row in number[0]:
            inputs = {"input_ids": sequences.ids[row], "token_type_ids": sequences.segment_ids[row]}
            with torch.inference_mode():
                tensors = {name: torch.tensor(ids[None].astype(np.int64)) for name, ids in inputs.items()}
                out.append(model(**tensors).logits[0].double().numpy())
        logits.append(np.stack(out))
    z = np.exp(np.stack([logits[0], logits[1][:, SWAPPED]]) / temperature)
    return np.asarray(z / z.sum(axis=2, keepdims=True))


def mean_loss(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return float(-(targets * np.log(probabilities)).sum(axis=1).mean())


def figures_of(text: str, name: str) -> dict[str, float]:
    """The figures of one line of the main table; ``nan`` where it shows a dash."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
    cells = re.sub(r"[\[\],*]", "", line[len(name) :]).split()
    names = ("log_loss", "low", "high", "accuracy", "ece", "brier", "swap_gap", "rows_per_second", "expected")
    return dict(zip(names, (float(cell) if cell != "-" else np.nan for cell in cells), strict=False))


def test_printed_figures_are_those_of_plain_transformers(place: Path, tmp_path: Path) -> None:
    text = report(place, "single", "folds", truth_parquet=TRUTH, json_file=tmp_path / "figures.json")
    rows = load_test(SAMPLE / "test.csv").rows
    ids = rows["id"].to_pylist()
    votes, truth = load_labels(LABELS, ids), read_truth(TRUTH, ids)
    temperature = json.loads((place / "temperature.json").read_text())["temperature"]
    saved = place / "model_save"
    single = plain_probabilities(saved / "single" / "student_distilbert", rows, 64, temperature)
    folds = np.stack(
        [
            plain_probabilities(saved / "folds" / f"student_distilbert_fold_{fold}", rows, 48, t)
            for fold, t in enumerate((temperature, SHARP))
        ]
    )
    expected = {
        "single": single[None],
        "folds, mean of 2 folds": folds,
        "folds, ensemble": folds.mean(axis=0)[None],
    }
    document = json.loads((tmp_path / "figures.json").read_text())
    written = {line["name"]: line for line in document["lines"]}
    assert folds[1].mean(axis=0).std(axis=0).min() > 0.01, "a student that says the same of every row tests little"
    for name, views in expected.items():
        p, shown, line = views.mean(axis=1), figures_of(text, name), written[name]
        by_hand = {
            "log_loss": np.mean([mean_loss(q, votes) for q in p]),
            "expected": np.mean([mean_loss(q, truth) for q in p]),
            "accuracy": np.mean([(q.argmax(axis=1) == votes.argmax(axis=1)).mean() for q in p]),
            "brier": np.mean([((q - votes) ** 2).sum(axis=1).mean() for q in p]),
            "swap_gap": np.abs(views[:, 0] - views[:, 1]).sum(axis=-1).mean(),
        }
        for figure, value in by_hand.items():
            exact = line[figure]["value"] if figure in ("log_loss", "expected") else line[figure]
            assert exact == pytest.approx(value, abs=1e-5), (name, figure)
            assert shown[figure] == pytest.approx(exact, abs=5.1e-5), (name, figure)
        assert shown["low"] < shown["log_loss"] < shown["high"]
        assert shown["rows_per_second"] > 0
    best = figures_of(text, "Bayes optimal")
    assert best["log_loss"] == pytest.approx(mean_loss(truth, votes), abs=1e-4)
    assert text.index("folds, ensemble") < text.index("Bayes optimal") and np.isnan(best["swap_gap"])
    one, two = ([mean_loss(q, votes) for q in expected[name].mean(axis=1)] for name in ("folds, ensemble", "single"))
    assert f"folds, ensemble minus single  {one[0] - two[0]:+.4f} [" in re.sub(" {2,}", "  ", text)
    assert "folds, ensemble minus folds, mean of 2 folds" in text
    assert {student["directory"] for student in document["students"]} == {
        str(saved / "single" / "student_distilbert"),
        *(str(saved / "folds" / f"student_distilbert_fold_{fold}") for fold in (0, 1)),
    }


def test_a_group_is_the_mean_of_its_runs_and_one_order_has_no_swap_gap(place: Path) -> None:
    text = report(place, "seeds=single,other", "single", "other", swap=False)
    group, *members = (figures_of(text, name) for name in ("seeds, mean of 2 runs*", "single", "other*"))
    for name in ("log_loss", "accuracy", "ece", "brier"):
        assert group[name] == pytest.approx(np.mean([member[name] for member in members]), abs=1.1e-4)
    assert np.isnan(group["swap_gap"]) and "swapped" in text  # its temperature is of both orders, and that is said
    bare = place / "model_save" / "other" / "student_distilbert"
    assert f"* not calibrated (no calibration.json, so T = 1): {bare}" in text


def test_groups_of_runs_of_folds_are_compared_pair_by_pair(place: Path) -> None:
    shutil.copytree(place / "model_save" / "folds", place / "model_save" / "folds2", dirs_exist_ok=True)
    text = report(place, "labels=folds,folds2", "soft=distilled,folds2")
    assert "soft, ensemble ×2 minus labels, ensemble ×2" in text and "soft, mean of 2 folds ×2 minus" in text
    assert "2 of 2" in text and "log loss is equal" in text
    assert text.count("×S, mean of S runs") == 1


def test_held_out_figures_are_means_over_rows_and_the_leak_is_noted_only_for_distilled_folds(place: Path) -> None:
    own = json.loads((place / "temperature.json").read_text())
    rows = own["rows_holdout"]
    pooled = (own["logloss_holdout_after"] * rows + 1.25 * 30) / (rows + 30)
    plain, soft = report(place, "folds", "single"), report(place, "distilled", "other")
    found = re.search(r"^folds, cross-validated +(\S+) +(\d+) +1$", plain, re.M)
    assert found and float(found[1]) == pytest.approx(pooled, abs=5.1e-5) and int(found[2]) == rows + 30
    assert re.search(rf"^single, holdout +{own['logloss_holdout_after']:.4f} +{rows} +1$", plain, re.M)
    assert SECOND_ORDER_LEAK not in plain
    assert SECOND_ORDER_LEAK in soft and "distilled, cross-validated" in soft and "other, holdout" not in soft
    assert "Held-out rows" not in report(place, "other")


def test_the_training_file_adds_the_baselines_and_what_it_shares_with_the_test_file_is_noted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed.csv"
    shared = 4
    with (SAMPLE / "train.csv").open(newline="") as train, (SAMPLE / "test.csv").open(newline="") as test:
        names = ["id", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"]
        with mixed.open("w", newline="") as out:
            writer = csv.DictWriter(out, names, extrasaction="ignore")
            writer.writeheader()
            for row in list(csv.DictReader(train))[:150]:
                writer.writerow(row)
            for row in list(csv.DictReader(test))[:shared]:
                writer.writerow(
                    row | {"response_b": "other", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
                )
    clean = report(place, "single", train_csv=SAMPLE / "train.csv")
    assert clean.index("TF-IDF") < clean.index("single  ") and "of the training file (" not in clean
    text = report(place, "single", train_csv=mixed)
    note = re.search(r"^note: (\d+) of 300 test rows have a prompt of the training file \(.*mixed\.csv\)$", text, re.M)
    assert note and int(note[1]) >= shared
    assert note[0] in capsys.readouterr().out, "before the models are loaded, too"


def test_a_test_file_that_a_student_learned_from_is_refused(place: Path, student: dict[str, object]) -> None:
    train = Path(str(student["train_csv"]))
    with pytest.raises(InputError, match=r"single/student_distilbert was trained on this very file \(train_csv\)"):
        report(place, "single", test_csv=train, labels_csv=train)
    copy = place / "model_save" / "extra" / "student_distilbert"
    shutil.copytree(place / "model_save" / "single" / "student_distilbert", copy)
    edit_json(copy / "manifest.json", inputs={"train_csv": "0", "extra_csv_1": sha256_file(SAMPLE / "test.csv")})
    with pytest.raises(InputError, match=r"trained on this very file \(extra_csv_1\)"):
        report(place, "extra")


def copied_folds(place: Path, to: Path) -> Path:
    shutil.copytree(place / "model_save" / "folds", to / "model_save" / "folds")
    return to / "model_save" / "folds"


def test_a_fold_that_is_missing_is_named(place: Path, tmp_path: Path) -> None:
    folds = copied_folds(place, tmp_path)
    for fold in (0, 1):
        edit_json(folds / f"student_distilbert_fold_{fold}" / "manifest.json", n_folds=3)
    with pytest.raises(
        InputError, match=r"folds/student_distilbert_fold_2: missing; the run has 3 folds.*train fold 2"
    ):
        find_groups(["folds"], tmp_path, "student_distilbert")
    edit_json(folds / "student_distilbert_fold_1" / "manifest.json", n_folds=5)
    with pytest.raises(InputError, match="disagree on the number of folds"):
        find_groups(["folds"], tmp_path, "student_distilbert")
    (folds / "student_distilbert_fold_1" / "manifest.json").unlink()
    with pytest.raises(InputError, match="fold_1: no finished student there"):
        find_groups(["folds"], tmp_path, "student_distilbert")


def test_a_fold_beyond_the_last_or_of_another_number_is_refused(place: Path, tmp_path: Path) -> None:
    folds = copied_folds(place, tmp_path)
    shutil.copytree(folds / "student_distilbert_fold_1", folds / "student_distilbert_fold_2")
    with pytest.raises(InputError, match=r"fold_2: its manifest.json is of fold 1"):
        find_groups(["folds"], tmp_path, "student_distilbert")
    edit_json(folds / "student_distilbert_fold_2" / "manifest.json", fold=2)
    with pytest.raises(InputError, match=r"fold_2: not one of the run's 2 folds"):
        find_groups(["folds"], tmp_path, "student_distilbert")


def test_runs_that_are_not_there_or_stand_twice_are_refused(place: Path) -> None:
    with pytest.raises(InputError, match=r"model_save/nothing: no such run"):
        find_groups(["single", "nothing"], place, "student_distilbert")
    with pytest.raises(InputError, match=r"no student_bert and .*but student_distilbert -> choose with --student"):
        find_groups(["single"], place, "student_bert")
    with pytest.raises(SettingsError, match="would pass for two runs"):
        find_groups([f"a=single,{place / 'model_save' / 'single' / 'student_distilbert'}"], place, "student_distilbert")
    with pytest.raises(SettingsError, match="not of one kind"):
        find_groups(["a=single,folds"], place, "student_distilbert")
    for words in ("=single", "a=", "a=single,"):
        with pytest.raises(SettingsError, match="a name is missing"):
            find_groups([words], place, "student_distilbert")
    with pytest.raises(SettingsError, match="'single' stands for two lines"):
        report(place, "single", "single=other")
    with pytest.raises(SettingsError, match="'length' stands for two lines"):
        report(place, "length=single", train_csv=SAMPLE / "train.csv")


def test_a_directory_or_a_path_may_stand_for_a_run(place: Path) -> None:
    saved = place / "model_save"
    one, fold, run = find_groups(
        [
            str(saved / "single" / "student_distilbert"),
            f"f={saved / 'folds' / 'student_distilbert_fold_1'}",
            f"all={saved / 'folds'}",
        ],
        Path("elsewhere"),
        "student_distilbert",
    )
    assert (one.folded, fold.folded, run.folded) == (False, False, True)
    assert [s.max_length for s in (*one.students, *fold.students)] == [64, 48]
    assert fold.students[0].fold == 1 and one.students[0].fold is None


def test_a_temperature_of_other_weights_is_refused(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "student"
    shutil.copytree(place / "model_save" / "single" / "student_distilbert", copy)
    edit_json(copy / "calibration.json", weights_sha256="0")
    with pytest.raises(InputError, match="fitted on other weights"):
        find_groups([str(copy)], tmp_path, "student_distilbert")


def test_labels_that_are_missing_or_empty_and_senseless_numbers_are_refused(place: Path, tmp_path: Path) -> None:
    lines = LABELS.read_text().splitlines()
    short, empty = tmp_path / "short.csv", tmp_path / "empty.csv"
    short.write_text("\n".join(lines[:-1]) + "\n")
    empty.write_text("\n".join([*lines[:-1], lines[-1].split(",")[0] + ",,,"]) + "\n")
    with pytest.raises(DataError, match=r"short\.csv: has no row for id .*1 missing"):
        report(place, "single", labels_csv=short)
    with pytest.raises(DataError, match=r"empty\.csv, row 300: has an id without a label"):
        report(place, "single", labels_csv=empty)
    with pytest.raises(DataError, match="has no label columns"):
        report(place, "single", labels_csv=SAMPLE / "test.csv")
    with pytest.raises(DataError, match="nowhere"):
        report(place, "single", labels_csv=tmp_path / "nowhere.csv")
    with pytest.raises(SettingsError, match="--bootstrap 10"):
        report(place, "single", resamples=10)
    whole = Path(shutil.copy(LABELS, tmp_path / "whole.csv"))
    with pytest.raises(InputError, match="would overwrite an input"):
        report(place, "single", labels_csv=whole, json_file=whole)


def test_the_script_prints_the_report_and_ends_with_the_code_of_an_error(place: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [sys.executable, REPOSITORY / "scripts" / "compare_runs.py", *words]
        files: list[str | Path] = ["--test-csv", SAMPLE / "test.csv", "--labels-csv", LABELS, "--output-dir", place]
        return subprocess.run([*command, *files], env=os.environ, text=True, capture_output=True)

    done = run("single", "--bootstrap", "100")
    assert done.returncode == 0, done.stderr
    assert figures_of(done.stdout, "single")["rows_per_second"] > 0
    failed = run("nothing")
    assert failed.returncode == 3 and failed.stderr.startswith("error: ") and "no such run" in failed.stderr
