"""Calibrating, scoring and predicting with a trained student."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from arena_distill.data.loading import load_labelled, load_test
from arena_distill.data.prompts import View
from arena_distill.data.records import SWAPPED
from arena_distill.data.splits import CALIBRATION, HOLDOUT, TRAIN, load_split
from arena_distill.evaluation.metrics import softmax
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference.judge import load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.errors import ArenaError, DataError, InputError, SettingsError
from tests.conftest import SAMPLE
from tests.training.student_runs import run_mode

Student = dict[str, object]


def _directory(student: Student) -> Path:
    return Path(str(student["student_output_model_dir"]))


def test_calibration_json_has_all_published_keys(student: Student) -> None:
    report = json.loads((_directory(student) / "calibration.json").read_text())
    expected = {"temperature"} | {
        f"{metric}_{part}_{when}"
        for metric in ("nll", "logloss")
        for part in ("cal", "holdout")
        for when in ("before", "after", "improvement")
    }
    assert expected <= report.keys()
    assert report["nll_cal_after"] <= report["nll_cal_before"]


def test_eval_holdout_prints_the_baselines_beside_the_student(
    student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    run_mode("student-eval-holdout", **student)
    out = capsys.readouterr().out
    for name in ("constant prior", "length", "TF-IDF", "student", "student, calibrated"):
        assert any(line.startswith(name) for line in out.splitlines()), name


def test_the_three_parts_are_disjoint_and_share_no_prompt(student: Student) -> None:
    train_csv = Path(str(student["train_csv"]))
    rows = load_labelled(train_csv).rows
    split = load_split(_directory(student), rows, train_csv)
    parts = [set(split.select(rows, part)["prompt_hash"].to_pylist()) for part in (TRAIN, CALIBRATION, HOLDOUT)]
    assert all(parts)
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_scoring_against_other_training_data_is_refused(student: Student) -> None:
    with pytest.raises(DataError, match=r"not the .* rows"):
        run_mode("student-eval-holdout", **{**student, "train_csv": SAMPLE / "train.csv"})


def test_submission_has_the_test_ids_in_order_and_is_calibrated(
    student: Student, small_test_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sub" / "student_submission.csv"
    options = {"test_csv": small_test_csv, "student_submission_path": out, "student_infer_tta_swap": False}
    run_mode("student-infer", **student, **options)
    rows = load_test(small_test_csv).rows
    ids, probabilities = read_submission(out)
    assert ids == rows["id"].to_pylist()
    temperature = json.loads((_directory(student) / "calibration.json").read_text())["temperature"]
    logits = load_judge(_directory(student), max_length=64).logits(rows)
    np.testing.assert_allclose(probabilities, softmax(logits, temperature), atol=1e-6)
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    assert manifest["temperature"] == temperature and manifest["rows"] == len(ids)


def test_swapping_the_answers_swaps_the_prediction(student: Student, small_test_csv: Path, tmp_path: Path) -> None:
    swapped_csv = tmp_path / "swapped.csv"
    with small_test_csv.open(newline="") as source, swapped_csv.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["id", "prompt", "response_a", "response_b"])
        writer.writeheader()
        for row in csv.DictReader(source):
            writer.writerow(row | {"response_a": row["response_b"], "response_b": row["response_a"]})
    predictions = []
    for file in (small_test_csv, swapped_csv):
        out = tmp_path / f"{file.stem}.out.csv"
        options = {"test_csv": file, "student_submission_path": out, "student_infer_tta_lengths": "32,64"}
        run_mode("student-infer", **student, **options)
        predictions.append(read_submission(out)[1])
    np.testing.assert_allclose(predictions[1], predictions[0][:, SWAPPED], atol=1e-5)
    assert np.abs(predictions[0][:, 0] - predictions[0][:, 1]).max() > 1e-4, "the student must tell A from B at all"


def test_labels_at_hand_print_the_table(student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "test_csv": SAMPLE / "test.csv",
        "labels_csv": SAMPLE / "test_labels.csv",
        "truth_parquet": SAMPLE / "truth.parquet",
        "student_submission_path": tmp_path / "s.csv",
    }
    run_mode("student-infer", **student, **options)
    lines = capsys.readouterr().out.splitlines()
    for name in ("constant prior", "length", "TF-IDF", "this student", "Bayes optimal"):
        assert any(line.startswith(name) for line in lines), name


def test_labels_of_another_file_are_refused_before_the_model_works(
    student: Student, small_test_csv: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("id,winner\nsomebody_else,tie\n")
    out = tmp_path / "s.csv"
    with pytest.raises(DataError, match=r"labels\.csv"):
        run_mode("student-infer", **student, test_csv=small_test_csv, labels_csv=labels, student_submission_path=out)
    assert not out.exists()


def test_a_student_that_lost_its_head_is_refused(student: Student, small_test_csv: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    headless = shutil.copytree(_directory(student), tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    assert len(kept) < len(weights)
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="random head"):
        load_judge(headless)


def test_calibration_of_other_weights_is_refused(student: Student, small_test_csv: Path, tmp_path: Path) -> None:
    import shutil

    copied = shutil.copytree(_directory(student), tmp_path / "copied")
    document = json.loads((copied / "calibration.json").read_text())
    (copied / "calibration.json").write_text(json.dumps(document | {"weights_sha256": "0" * 64}))
    settings = {**student, "student_output_model_dir": copied}
    with pytest.raises(InputError, match="other weights"):
        run_mode("student-infer", **settings, test_csv=small_test_csv, student_submission_path=tmp_path / "s.csv")


def test_inference_without_a_student_says_what_to_do(small_test_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(ArenaError, match="student-train"):
        run_mode("student-infer", test_csv=small_test_csv, student_output_model_dir=tmp_path / "none")


def test_logits_do_not_depend_on_the_batch_budget(student: Student, small_test_csv: Path) -> None:
    rows = load_test(small_test_csv).rows
    wide, narrow = (load_judge(_directory(student), max_length=64, batch_rows=n).logits(rows) for n in (64, 1))
    np.testing.assert_allclose(wide, narrow, atol=1e-5)


def test_views_with_the_same_tokens_are_computed_once(student: Student, small_test_csv: Path) -> None:
    judge = load_judge(_directory(student), max_length=64)
    rows = load_test(small_test_csv).rows
    counted: list[int] = []
    score = judge.score
    judge.score = lambda sequences: counted.append(len(sequences)) or score(sequences)  # type: ignore[method-assign]
    views = tta_views([384, 512], swap=True)
    logits = judge.view_logits(rows, views)
    assert counted[0] < len(rows) * len(views) * 0.7
    for view, one in zip(views, logits, strict=True):
        alone = judge.view_logits(rows, [View(view.max_length, view.swap)])[0]
        np.testing.assert_allclose(one, alone, atol=1e-5)


def test_8_bit_weights_agree_with_full_precision(
    student: Student, small_test_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without VNNI; tests/models/test_int8_cpu.py has the others."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("arena_distill.inference.judge.can_compute_int8", lambda model_type: False)
    rows = load_test(small_test_csv).rows
    full, int8 = (load_judge(_directory(student), max_length=64, quant=quant) for quant in ("none", "int8"))
    kinds = {type(module).__name__ for module in int8.model.modules()}
    assert "Linear8bitLt" in kinds
    assert type(int8.model.classifier).__name__ == "Linear"
    np.testing.assert_allclose(softmax(int8.logits(rows)), softmax(full.logits(rows)), atol=0.02)


def test_float16_without_a_gpu_is_refused_with_the_alternative(student: Student) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match="bfloat16"):
        load_judge(_directory(student), dtype="float16")


def test_later_modes_take_the_length_limit_that_the_student_was_trained_with(student: Student) -> None:
    from arena_distill.training.trained_student import TrainedStudent
    from tests.training.student_runs import settings_for

    unsaid = {name: value for name, value in student.items() if name != "student_max_length"}
    assert TrainedStudent(settings_for("student-infer", **unsaid)).max_length == 64
    assert TrainedStudent(settings_for("student-infer", **unsaid, student_max_length=32)).max_length == 32


def test_baselines_learn_from_the_rows_that_the_student_learned_from(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    from arena_distill.training.trained_student import TrainedStudent
    from tests.training.student_runs import quick_settings, settings_for

    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s")
    chosen = {
        "student_max_samples": 50,
        "student_extra_csvs": SAMPLE / "ultrafeedback_ties.csv",
        "student_max_steps": 1,
    }
    run_mode("student-train", **settings, **chosen)
    rows = json.loads((tmp_path / "s" / "manifest.json").read_text())["rows"]["train"]
    student = TrainedStudent(settings_for("student-eval-holdout", **settings))
    assert len(student.data.train) == rows > 50
    assert student.data.train["base_idx"].to_pylist().count(-1) == rows - 50


def test_a_temperature_used_with_other_views_is_remarked(
    student: Student, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"test_csv": small_test_csv, "student_submission_path": tmp_path / "s.csv"}
    run_mode("student-infer", **student, **options)
    assert "note: the temperature" not in capsys.readouterr().out
    run_mode("student-infer", **student, **options, student_infer_tta_swap=False)
    assert (
        "note: the temperature was fitted with the views 64, 64 swapped and is used with 64;" in capsys.readouterr().out
    )


def test_labels_without_training_rows_are_refused_before_anything_is_written(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {name: value for name, value in student.items() if name != "train_csv"}
    options = {"test_csv": SAMPLE / "test.csv", "labels_csv": SAMPLE / "test_labels.csv"}
    with pytest.raises(InputError, match="--train-csv"):
        run_mode("student-infer", **settings, **options, student_submission_path=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("target", ["test.csv", "labels.csv", "student/config.json"])
def test_a_submission_never_overwrites_an_input_or_the_student(target: str, student: Student, tmp_path: Path) -> None:
    import shutil

    shutil.copy(SAMPLE / "test.csv", tmp_path / "test.csv")
    shutil.copy(SAMPLE / "test_labels.csv", tmp_path / "labels.csv")
    shutil.copytree(_directory(student), tmp_path / "student")
    before = (tmp_path / target).read_bytes()
    settings = {**student, "student_output_model_dir": tmp_path / "student"}
    options = {"test_csv": tmp_path / "test.csv", "labels_csv": tmp_path / "labels.csv"}
    with pytest.raises(InputError, match="choose another"):
        run_mode("student-infer", **settings, **options, student_submission_path=tmp_path / target)
    assert (tmp_path / target).read_bytes() == before
