"""Parts of different runs that lie in one place are never shown as one without a warning that names both."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.report import finished_run as made_by
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun


def texts(made: FinishedRun) -> list[str]:
    return [warning["text"] for warning in report_of(made)["warnings"]]


def test_a_run_whose_parts_belong_together_has_no_warnings(finished: FinishedRun) -> None:
    assert texts(finished) == []


CHANGES: dict[str, tuple[Callable[[FinishedRun], None], str, str]] = {
    "teacher": (lambda made: made_by.write_teacher(made, 1, seed=9), "big_fold_1", "teacher big_fold_1"),
    "student": (lambda made: made_by.write_student(made, 0, seed=9), "avg_lora", "distilled_small_fold_0"),
    "merged": (lambda made: made_by.write_merged(made, seed=9), "final_quantized_model", "final_merged_model"),
    "quantized": (
        lambda made: made_by.write_quantized(made, seed=9), "x_final_submission.csv", "final_quantized_model",
    ),
    "submission": (
        lambda made: made_by.write_predicted(made, seed=9), "x_final_ensemble.csv", "sub/x_final_submission.csv",
    ),
    "ensemble": (
        lambda made: (made_by.write_predicted(made, seed=9), made_by.write_ensemble(made))[0],
        "x_evaluation.json", "sub/x_final_ensemble.csv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", CHANGES)
def test_what_was_made_of_another_part_is_named_with_it(spoilt: FinishedRun, part: str) -> None:
    change, made, source = CHANGES[part]
    change(spoilt)
    assert any(text.startswith(made) and f"another {source}" in text for text in texts(spoilt))


def test_a_prediction_by_the_merged_model_is_not_passed_off_as_the_quantized_ones(spoilt: FinishedRun) -> None:
    made_by.write_predicted(spoilt, "final_merged_model")
    assert any("predicted by final_merged_model, although final_quantized_model" in text for text in texts(spoilt))


def test_another_temperature_than_the_models_is_named(spoilt: FinishedRun) -> None:
    (spoilt.models / "final_quantized_model" / "calibration.json").write_text('{"temperature": 2.0}')
    assert any("calibrated by another calibration.json" in text for text in texts(spoilt))


def test_an_output_that_changed_or_went_is_named(spoilt: FinishedRun) -> None:
    weights = spoilt.models / "big_fold_0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (spoilt.models / "avg_lora" / "adapter_model.safetensors").unlink()
    found = texts(spoilt)
    assert any("of big_fold_0: model.safetensors has changed" in text for text in found)
    assert any("of avg_lora: adapter_model.safetensors is gone" in text for text in found)


def test_folds_that_were_trained_with_different_settings_are_named(spoilt: FinishedRun) -> None:
    made_by.write_student(spoilt, 1, student_lr=5e-3)
    assert any("step5_distill_student" in text and "STUDENT_LR" in text for text in texts(spoilt))


def test_steps_that_were_scored_on_different_test_files_are_named(spoilt: FinishedRun) -> None:
    with (spoilt.root / "data" / "test.csv").open("a") as stream:
        stream.write("\n")
    made_by.write_merged(spoilt)
    assert any("different test files" in text for text in texts(spoilt))


def test_a_data_file_that_is_another_now_is_named(spoilt: FinishedRun) -> None:
    folds = spoilt.root / "data" / "processed_data" / "x" / "folds_2_seed42.json"
    folds.write_text("{}")
    assert any("folds_2_seed42.json (folds) is not the file that the run read" in text for text in texts(spoilt))


def test_warnings_are_visible_on_the_page(spoilt: FinishedRun) -> None:
    made_by.write_merged(spoilt, seed=9)
    report_of(spoilt)
    page = (spoilt.models / "report.html").read_text("utf-8")
    assert "final_quantized_model was made from another final_merged_model" in page
    assert 'role="alert"' in page
