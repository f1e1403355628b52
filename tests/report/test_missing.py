"""What is missing leaves a gap that says how to fill it; what is broken is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from arena_distill.report.report_settings import ReportSettings
from arena_distill.report.report_stage import write_report
from arena_distill.runtime.errors import InputError, SettingsError
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun


def page_of(made: FinishedRun) -> str:
    return (made.models / "report.html").read_text("utf-8")


def test_a_finished_run_misses_nothing(finished: FinishedRun) -> None:
    assert report_of(finished)["missing"] == []


def test_without_votes_no_score_is_claimed_and_what_there_is_is_said(spoilt: FinishedRun) -> None:
    for file in spoilt.root.glob("sub/*evaluation*"):
        file.unlink()
    report = report_of(spoilt)
    assert report["headline"]["scores"] == {}
    assert "nothing here says how good the final model is" in report["headline"]["sentence"]
    assert "out of fold" in report["headline"]["sentence"]
    assert "Scored on" not in page_of(spoilt)
    assert "LABELS_CSV=votes.csv bash step9_eval.sh" in page_of(spoilt)


def test_without_teachers_the_rest_is_reported(spoilt: FinishedRun) -> None:
    shutil.rmtree(spoilt.models / "teacher_logits")
    for path in spoilt.models.glob("big_fold_*"):
        shutil.rmtree(path)
    report = report_of(spoilt)
    assert report["chain"][0]["step"] == "Students small"
    assert [missing["command"] for missing in report["missing"]] == ["RUN=x bash step4_infer_teacher_logits.sh"]


def test_without_quantization_the_merged_model_is_the_last(spoilt: FinishedRun) -> None:
    shutil.rmtree(spoilt.models / "final_quantized_model")
    report = report_of(spoilt)
    assert report["headline"]["model"] == "final_merged_model"
    assert report["quantization"] is None
    assert "RUN=x bash step7_quantize_gptq.sh" in page_of(spoilt)


def test_students_alone_are_enough(spoilt: FinishedRun) -> None:
    shutil.rmtree(spoilt.root / "sub")
    for name in ("avg_lora", "final_merged_model", "final_quantized_model", "teacher_logits"):
        shutil.rmtree(spoilt.models / name)
    report = report_of(spoilt)
    assert [row["step"] for row in report["chain"]] == ["Students small"]
    assert report["curves"][0]["title"] == "Students small"


def test_an_evaluation_without_logits_leaves_out_what_needs_them(spoilt: FinishedRun) -> None:
    path = spoilt.sub("evaluation.json")
    document = json.loads(path.read_text("utf-8")) | {"calibration": None, "position_bias": None, "tta": None}
    path.write_text(json.dumps(document))
    report = report_of(spoilt)
    assert report["position_bias"] == []
    assert [part["title"] for part in report["calibration"]["parts"]] == ["The submission"]
    assert "Calibrated" not in [row["step"] for row in report["chain"]]


def test_nothing_at_all_is_refused_with_the_runs_that_are_there(finished: FinishedRun) -> None:
    with pytest.raises(InputError, match=r"model_save/y.* -> give another with --run: x"):
        write_report(ReportSettings(output_dir=finished.root, run="y"))


def test_an_empty_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run a stage first"):
        write_report(ReportSettings(output_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_save/x/avg_lora/manifest.json", "{"),
        ("model_save/x/avg_lora/manifest.json", '{"schema_version": 1}'),
        ("model_save/x/final_quantized_model/quantization_report.json", "[1, 2"),
        ("model_save/x/final_quantized_model/quantization_report.json", '{"kl": NaN, "layers": []}'),
        ("model_save/x/final_quantized_model/quantization_report.json", '{"kl": "small", "layers": []}'),
        ("model_save/x/distilled_small_fold_1/training_log.json", '{"loss": 1}'),
        ("model_save/x/distilled_small_fold_1/training_log.json", "\x00"),
        ("sub/x_evaluation.json", "half of it"),
        ("sub/x_evaluation.json", '{"schema_version": 99}'),
        ("sub/x_evaluation.json", '{"schema_version": 1}'),
        ("sub/x_final_submission.manifest.json", "null"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_the_older_report_stays(
    spoilt: FinishedRun, name: str, content: str
) -> None:
    report_of(spoilt)
    before = page_of(spoilt)
    (spoilt.root / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=Path(name).name.replace(".", r"\.")) as refused:
        report_of(spoilt)
    assert " -> " in str(refused.value)
    assert page_of(spoilt) == before


def test_a_file_that_is_no_report_is_not_overwritten(finished: FinishedRun, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.html"
    mine.write_text("<p>Three years of work</p>")
    with pytest.raises(InputError, match=r"thesis\.html: is no report"):
        report_of(finished, report_out=str(mine))
    assert mine.read_text() == "<p>Three years of work</p>"


def test_a_page_must_be_named_as_one() -> None:
    with pytest.raises(SettingsError, match=r"ends in \.html"):
        ReportSettings(report_out="report.pdf").page  # noqa: B018
