"""The commands of a report, run by a real shell, tell every stage what it was told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arena_distill.report.recorded_settings import HOW_IT_RAN, settings_class
from arena_distill.runtime.settings import parse_settings
from arena_distill.runtime.stages import STAGES
from tests.report import finished_run as made_by
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun


def told_by(commands: str, place: Path) -> dict[str, dict[str, str]]:
    """The environment that each stage's script gets, in their order; run where every script only notes it."""
    for stage in STAGES.values():
        noted = f"told/{stage.name}"
        (place / stage.script).write_text(f"mkdir -p {noted}; env -0 > {noted}/env; [ $# = 0 ]\n")
    subprocess.run(
        ["bash", "-euc", commands], cwd=place, env={"PATH": os.environ["PATH"], "PROFILE": "none"}, check=True
    )
    found = {}
    for stage in STAGES:
        noted = place / "told" / stage
        if noted.is_dir():
            lines = (noted / "env").read_text("utf-8").split("\0")
            found[stage] = dict(line.partition("=")[::2] for line in lines if line)
    return found


def parsed(stage: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    own = {name: value for name, value in env.items() if name not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")}
    with monkeypatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        return parse_settings(settings_class(stage), [], program=stage, description="").model_dump(mode="json")


@pytest.mark.parametrize(
    "stage", ["step2_make_folds", "step3_train_teachers", "step5_distill_student", "step6_lora_ensemble",
              "step7_quantize_gptq"],
)  # fmt: skip
def test_a_stage_is_told_again_what_it_recorded(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    report = report_of(finished)
    recorded = {name: value for table in report["settings"] if table["stage"] == stage
                for name, value, _, _ in table["settings"]}  # fmt: skip
    now = parsed(stage, told_by(report["commands"], tmp_path)[stage], monkeypatch)
    assert {name: now[name] for name in recorded.keys() - HOW_IT_RAN} == {
        name: recorded[name] for name in recorded.keys() - HOW_IT_RAN
    }


def test_steps_4_and_8_are_told_run_data_and_lengths(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_by(report_of(finished)["commands"], tmp_path)
    labels = parsed("step4_infer_teacher_logits", told["step4_infer_teacher_logits"], monkeypatch)
    assert (labels["run"], labels["n_folds"], labels["infer_max_seq_len"]) == ("x", 2, 0)
    assert Path(labels["train_csv"]) == finished.root / "data" / "train.csv"
    predicted = parsed("step8_infer_tta", told["step8_infer_tta"], monkeypatch)
    assert (predicted["tta_lengths"], predicted["model_dir"]) == ("192", "")
    assert Path(predicted["test_csv"]) == finished.root / "data" / "test.csv"


def test_commands_stand_in_the_order_of_the_stages(finished: FinishedRun) -> None:
    lines = report_of(finished)["commands"].split()
    scripts = [word for word in lines if word.startswith("step")]
    assert scripts == [stage.script for stage in STAGES.values() if stage.name != "step1_post_pretrain"]


def test_values_that_a_shell_would_take_apart_arrive_whole(
    spoilt: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = 'org/it\'s $(touch pwned) `x` "y"; a\\b *'
    for fold in range(2):
        made_by.write_student(spoilt, fold, student_model_name=hostile)
    told = told_by(report_of(spoilt)["commands"], tmp_path)
    again = parsed("step5_distill_student", told["step5_distill_student"], monkeypatch)
    assert again["student_model_name"] == hostile
    assert not (tmp_path / "pwned").exists()
