"""Data files and folds as they really come: missing, broken, swapped, too large to read whole."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.fold_stage import run as make_fold_files
from arena_distill.pipeline import preflight_data
from arena_distill.pipeline.variables import environment_of
from arena_distill.runtime.settings import parse_settings
from tests.conftest import SAMPLE
from tests.pipeline.preflight_runs import look

Rows = list[dict[str, str]]


def _changed(source: Path, target: Path, change: Callable[[Rows], Rows]) -> Path:
    with source.open(newline="", encoding="utf-8") as stream:
        rows = change(list(csv.DictReader(stream)))
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def _without(*columns: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{name: cell for name, cell in row.items() if name not in columns} for row in rows]


def _with(column: str, value: str, at: int) -> Callable[[Rows], Rows]:
    return lambda rows: [row | {column: value} if n == at else row for n, row in enumerate(rows)]


@pytest.mark.parametrize("setting", ["TRAIN_CSV", "TEST_CSV", "UT_DATA", "EXTRA_DATA", "CALIB_CSV", "LABELS_CSV"])
def test_a_file_that_is_not_there(setting: str, profile: Path, tmp_path: Path) -> None:
    seen = look("--profile", str(profile), **{setting: tmp_path / "none.csv"})
    assert seen.code == 3
    seen.one("fix", "data", setting, "none.csv", "no such file")
    assert len(seen.fixes) == 1, seen.fixes


def test_one_missing_file_of_several(profile: Path, tmp_path: Path) -> None:
    files = f"{SAMPLE / 'ultrafeedback.csv'},{tmp_path / 'none.csv'}"
    seen = look("--profile", str(profile), EXTRA_DATA=files)
    seen.one("ok", "data", "EXTRA_DATA", "300 votes")
    seen.one("fix", "data", "EXTRA_DATA", "none.csv")


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    ("setting", "change", "words"),
    [
        ("TRAIN_CSV", _without("response_b"), ("response_b",)),
        ("TRAIN_CSV", _without("winner", "winner_model_a", "winner_model_b", "winner_tie"), ("label columns",)),
        ("TRAIN_CSV", _with("winner_model_a", "7", 5), ("row 6",)),
        ("TEST_CSV", _without("id"), ("id",)),
        ("TEST_CSV", _without("prompt"), ("prompt",)),
    ],
    ids=["no answers", "no votes", "bad vote", "no ids", "no prompts"],
)
def test_wrong_columns_and_rows(
    setting: str, change: Callable[[Rows], Rows], words: tuple[str, ...], large: bool, profile: Path,
    small_train_csv: Path, small_test_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if large:
        monkeypatch.setattr(preflight_data, "WHOLE_BYTES", 0)
    source = {"TRAIN_CSV": small_train_csv, "TEST_CSV": small_test_csv}[setting]
    file = _changed(source, tmp_path / "changed.csv", change)
    seen = look("--profile", str(profile), **{setting: file})
    assert seen.code == 3
    seen.one("fix", "data", setting, "changed.csv", *words)


def test_a_large_file_is_not_read_whole(
    profile: Path, small_train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arena_distill.data import raw

    monkeypatch.setattr(raw, "BLOCK_BYTES", 1 << 15)
    monkeypatch.setattr(preflight_data, "WHOLE_BYTES", 1 << 15)
    good = look("--profile", str(profile)).one("ok", "data", "TRAIN_CSV").said
    assert "the first" in good
    bad_last = _changed(small_train_csv, tmp_path / "train.csv", _with("winner_model_a", "7", 159))
    assert look("--profile", str(profile), TRAIN_CSV=bad_last).code == 0
    monkeypatch.setattr(preflight_data, "WHOLE_BYTES", 1 << 30)
    assert look("--profile", str(profile), TRAIN_CSV=bad_last).code == 3


def test_a_test_file_that_is_the_training_file(profile: Path, small_train_csv: Path, tmp_path: Path) -> None:
    copy = shutil.copyfile(small_train_csv, tmp_path / "test.csv")
    seen = look("--profile", str(profile), TEST_CSV=copy, LABELS_CSV="none")
    assert seen.code == 3
    seen.one("fix", "data", "TEST_CSV", "byte for byte")


def test_test_rows_that_were_trained_on(
    profile: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    with small_train_csv.open(newline="", encoding="utf-8") as stream:
        known = list(csv.DictReader(stream))[:3]

    def add(rows: Rows) -> Rows:
        return [*rows, *({**{name: row[name] for name in rows[0] if name != "id"}, "id": f"k{n}"}
                         for n, row in enumerate(known))]  # fmt: skip

    file = _changed(small_test_csv, tmp_path / "test.csv", add)
    seen = look("--profile", str(profile), TEST_CSV=file, LABELS_CSV="none")
    assert "3 of 43 rows" in seen.one("warning", "data", "TEST_CSV").said


def test_ids_that_stand_twice(profile: Path, small_test_csv: Path, tmp_path: Path) -> None:
    with small_test_csv.open(newline="", encoding="utf-8") as stream:
        first = next(csv.DictReader(stream))["id"]
    file = _changed(small_test_csv, tmp_path / "test.csv", _with("id", first, 9))
    assert "row 10" in look("--profile", str(profile), TEST_CSV=file).one("fix", "data", "TEST_CSV").said


def test_votes_are_optional_and_must_be_of_these_rows(profile: Path, small_test_csv: Path, tmp_path: Path) -> None:
    seen = look("--profile", str(profile), LABELS_CSV="none")
    assert seen.code == 0
    assert "no evaluation" in seen.one("warning", "data", "LABELS_CSV").said
    labels = small_test_csv.with_name("test_labels.csv")
    lost = _changed(labels, tmp_path / "labels.csv", lambda rows: rows[:-1])
    seen = look("--profile", str(profile), LABELS_CSV=lost)
    assert seen.code == 3
    seen.one("fix", "data", "LABELS_CSV", "1 missing")


def test_a_calibration_file_that_is_the_test_file_or_too_small(
    profile: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    seen = look("--profile", str(profile), CALIB_CSV=small_test_csv)
    seen.one("fix", "data", "CALIB_CSV", "is the test file")
    few = _changed(small_test_csv, tmp_path / "few.csv", lambda rows: rows[:5])
    assert "too few" in look("--profile", str(profile), CALIB_CSV=few).one("fix", "data", "CALIB_CSV").said


def test_a_chain_without_step_8_needs_no_test_file(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in profile.read_text().splitlines() if not line.startswith("TEST_CSV")]
    profile.write_text("\n".join(lines))
    seen = look("--profile", str(profile), "--to", "7")
    assert seen.code == 0
    seen.one("warning", "data", "TEST_CSV", "training rows only")
    assert look("--profile", str(profile), "--to", "8").code == 3
    assert not [line for line in look("--profile", str(profile), "--to", "5").lines if "TEST_CSV" in line.text]


def _make_folds(profile: Path) -> Path:
    with environment_of({"PROFILE": str(profile)}):
        settings = parse_settings(FoldSettings, [], program="test", description="")
        make_fold_files(settings)
    return settings.folds_path


def test_a_division_that_is_there(profile: Path, small_train_csv: Path, tmp_path: Path) -> None:
    flags = ("--profile", str(profile))
    assert "step 2 makes" in look(*flags).one("ok", "data", "folds").said
    folds = _make_folds(profile)
    assert "of these 160 rows" in look(*flags).one("ok", "data", "folds").said
    done = look(*flags)
    done.one("ok", "earlier steps", "step 2", "up to date")
    done.one("ok", "disk", "step 2", "up to date")
    # The same rows in other bytes are the same data.
    same = _changed(small_train_csv, tmp_path / "same.csv", lambda rows: [dict(reversed(row.items())) for row in rows])
    assert "of these 160 rows" in look(*flags, TRAIN_CSV=same).one("ok", "data", "folds").said
    other = _changed(small_train_csv, tmp_path / "other.csv", lambda rows: rows[:-1])
    assert "other data" in look(*flags, TRAIN_CSV=other).one("warning", "data", "folds").said
    later = look(*flags, "--from", "3", TRAIN_CSV=other)
    later.one("fix", "data", "folds", "other data", "--from 2")
    named = look(*flags, "--from", "3", N_FOLDS=3, FOLDS_JSON=folds)
    named.one("fix", "data", "folds", "2 folds of seed 42", "3 of seed 42")
    assert "FOLDS_JSON" in look(*flags, "--from", "3", N_FOLDS=3).one("fix", "data", "folds", "not there").advice


def test_a_broken_division(profile: Path, tmp_path: Path) -> None:
    file = tmp_path / "folds.json"
    file.write_text(json.dumps({"schema_version": 1}))
    seen = look("--profile", str(profile), FOLDS_JSON=file)
    assert seen.code == 3
    seen.one("fix", "data", "folds", "broken folds file")


def test_steps_that_start_in_the_middle_want_what_came_before(profile: Path) -> None:
    seen = look("--profile", str(profile), "--from", "5")
    assert seen.code == 3
    seen.one("fix", "earlier steps", "step 5's input", "out-of-fold table", "--from 4")
    seen.one("fix", "earlier steps", "step 5's input", "fold file", "--from 2")
    for first, words in (("6", "distilled_student_fold_0"), ("7", "final_merged_model"), ("8", "final_quantized_model"),
                         ("9", "final_submission.csv")):  # fmt: skip
        seen = look("--profile", str(profile), "--from", first)
        assert seen.code == 3, first
        seen.one("fix", "earlier steps", f"step {first}'s input", words)
    _make_folds(profile)
    seen = look("--profile", str(profile), "--from", "4")
    seen.one("fix", "earlier steps", "step 4's input", "run step 3")


def test_a_finished_student_that_was_made_otherwise(profile: Path, tmp_path: Path) -> None:
    from arena_distill.runtime.artifacts import write_manifest

    _make_folds(profile)
    student = tmp_path / "out" / "model_save" / "distilled_student_fold_1"
    student.mkdir(parents=True)
    write_manifest(student, stage="step5_distill_student", settings={"student_lr": 1.0}, inputs={}, started=0)
    flags = ("--profile", str(profile), "--from", "5", "--to", "5")
    seen = look(*flags, STUDENT_ALPHA=0)
    line = seen.one("fix", "outputs", "step 5", "distilled_student_fold_1", "student_lr 1.0 -> 5e-05")
    assert (seen.code, line.advice.startswith("STUDENT_OVERWRITE=1")) == (2, True)
    assert look(*flags, STUDENT_ALPHA=0, STUDENT_OVERWRITE=1).code == 0
    whole_chain = look("--profile", str(profile))
    assert whole_chain.code == 0
    whole_chain.one("warning", "outputs", "step 5", "STUDENT_OVERWRITE=1")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *[("post_pretrain_llama_lora", 1), ("post_pretrain_llama", 1), ("small_fold_0_lora", 3), ("small_fold_1", 3)],
        *[("distilled_student_fold_0", 5), ("avg_lora", 6), ("final_merged_model", 6), ("final_quantized_model", 7)],
    ],
)
def test_a_place_that_is_taken(name: str, step: int, profile: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "model_save" / name
    place.mkdir(parents=True)
    assert look("--profile", str(profile)).code == 0
    (place / "thesis.txt").write_text("not to be lost")
    seen = look("--profile", str(profile))
    assert seen.code == 3
    seen.one("fix", "outputs", f"step {step}", name, "did not make")


def test_a_stage_is_not_done_while_one_before_it_is_not(profile: Path, small_train_csv: Path, tmp_path: Path) -> None:
    _make_folds(profile)
    flags = ("--profile", str(profile), "--to", "2")
    look(*flags).one("ok", "earlier steps", "step 2", "up to date")
    other = _changed(small_train_csv, tmp_path / "other.csv", lambda rows: rows[:-1])
    seen = look(*flags, TRAIN_CSV=other)
    assert not [line for line in seen.lines if "up to date" in line.said]


def test_submissions_of_folds_would_be_taken_instead(profile: Path, tmp_path: Path) -> None:
    sub = tmp_path / "out" / "sub"
    sub.mkdir(parents=True)
    (sub / "student_submission_fold_0.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n")
    seen = look("--profile", str(profile))
    assert "step 8 makes" in seen.one("warning", "earlier steps", "step 9's input").said
