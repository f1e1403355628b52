"""All steps, by main.py and under plain bash, from any directory, with every setting in a profile of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arena_distill.data.folds import load_folds
from arena_distill.data.loading import load_labelled, load_labels, load_test
from arena_distill.evaluation.metrics import kaggle_log_loss
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference.oof_table import read_oof_table
from arena_distill.runtime.stages import EVAL, INFER_TTA, LORA_ENSEMBLE, QUANTIZE, STAGES, markdown_table
from tests.conftest import REPOSITORY, SAMPLE


def run_stage(script: str, tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})


@pytest.fixture
def profile(tmp_path: Path, backbones: Path, small_train_csv: Path, small_test_csv: Path) -> Path:
    settings = {
        "TRAIN_CSV": small_train_csv,
        "TEST_CSV": small_test_csv,
        "UT_DATA": SAMPLE / "ultrafeedback.csv",
        "EXTRA_DATA": SAMPLE / "ultrafeedback_ties.csv",
        "OUTPUT_DIR": tmp_path / "out",
        "N_FOLDS": 3,
        "RUN_STAGE": "llama",
        "LLAMA_BASE": backbones / "llama",
        "LLAMA_NAME": "tiny",
        "SKIP_QWEN": 1,
        "STUDENT_MODEL_NAME": backbones / "llama",
        "STUDENT_NAME": "small",
        "QUANT_MAX_CALIB_SAMPLES": 32,
        "QUANT_MIN_AGREEMENT": 0.9,  # of a hundredth of the training that a student needs
        "TTA_LENGTHS": "64,96",
    }
    for prefix in ("POSTPRE", "TEACHER", "STUDENT"):
        for name, value in {"MAXLEN": 64, "PER_DEVICE_BS": 8, "GRAD_ACCUM": 1, "BF16": 0, "MAX_STEPS": 3}.items():
            settings[f"{prefix}_{name}"] = value
    path = tmp_path / "mine.env"
    path.write_text("".join(f"{name}={value} # as a test needs it\n" for name, value in settings.items()), "utf-8")
    return path


def main_py(mode: str, tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "main.py"), "--mode", mode, *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})


def files_of(directory: Path) -> dict[Path, int]:
    """When each file was written, by path; how far a process is, is no result."""
    kept = (path for path in directory.rglob("*.*") if path.suffix != ".lock" and path.parent.name != "progress")
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.slow
def test_main_py_does_every_stage_and_the_stage_scripts_then_find_nothing_to_do(
    profile: Path, tmp_path: Path, small_train_csv: Path, small_test_csv: Path
) -> None:
    out = tmp_path / "out"
    for mode in ("train", "inference"):
        done = main_py(mode, tmp_path, "--output-dir", str(out), PROFILE=str(profile))
        assert done.returncode == 0, done.stdout + done.stderr

    summary = json.loads((out / "training_summary.json").read_text("utf-8"))
    trained = [stage for stage in STAGES.values() if stage not in (INFER_TTA, EVAL)]
    assert [entry["stage"] for entry in summary["stages"]] == [stage.name for stage in trained]
    assert {entry["stage"] for entry in summary["outputs"]} >= {LORA_ENSEMBLE.name, QUANTIZE.name}

    folds = load_folds(out / "data" / "processed_data" / "folds_3_seed42.json")
    table = read_oof_table(
        out / "model_save" / "teacher_logits" / "oof_probs.parquet", load_labelled(small_train_csv).rows, folds
    )
    assert list(table) == ["tiny"]
    ids, probabilities = read_submission(out / "sub" / "final_submission.csv")
    assert ids == load_test(small_test_csv).rows["id"].to_pylist()
    assert np.allclose(read_submission(out / "sub" / "final_ensemble.csv", ids)[1], probabilities)
    scores = json.loads((out / "sub" / "evaluation.json").read_text("utf-8"))["scores"]
    votes = load_labels(small_test_csv.with_name("test_labels.csv"), ids)
    assert scores["log_loss"]["value"] == pytest.approx(kaggle_log_loss(probabilities, votes), abs=1e-9)
    assert f"{scores['log_loss']['value']:.4f}" in (out / "model_save" / "report.html").read_text("utf-8")

    before = files_of(out / "model_save") | files_of(out / "data")
    for stage in (stage for stage in STAGES.values() if stage is not EVAL):  # which is quick, and looks at all anew
        done = run_stage(stage.script, tmp_path, PROFILE=str(profile))
        assert done.returncode == 0 and "up to date" in done.stdout, done.stdout + done.stderr
        assert "trained in" not in done.stdout and "scoring" not in done.stdout
    assert (files_of(out / "model_save") | files_of(out / "data")) == before


def test_a_stage_script_ends_with_its_workers_exit_code(tmp_path: Path) -> None:
    done = run_stage("step3_train_teachers.sh", tmp_path, TRAIN_CSV="nowhere.csv", OUTPUT_DIR=str(tmp_path))
    assert done.returncode == 3
    assert "nowhere.csv" in done.stderr
    assert "stopped with exit code 3" in done.stdout


def test_an_unknown_profile_is_refused(tmp_path: Path) -> None:
    done = run_stage("step2_make_folds.sh", tmp_path, PROFILE="tinny")
    assert done.returncode == 2
    assert "PROFILE=tinny: no such profile" in done.stderr
    assert "llama3-70b" in done.stderr


def test_step_4_for_a_fold_asks_for_the_fold(tmp_path: Path) -> None:
    done = run_stage("step4_infer_fold.sh", tmp_path, SLURM_ARRAY_TASK_ID="")
    assert done.returncode == 2
    assert "FOLD is not set" in done.stderr


def test_the_readme_shows_the_table_of_stages() -> None:
    assert markdown_table() in (REPOSITORY / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "conf" / "profiles").glob("*.env")))
def test_every_profile_is_accepted_by_the_stages_it_is_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from arena_distill.data.fold_settings import FoldSettings
    from arena_distill.inference.oof_settings import OofSettings
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.post_pretrain_settings import PostPretrainSettings
    from arena_distill.training.teacher_settings import TeacherSettings

    monkeypatch.setenv("PROFILE", name)
    parsed = [
        parse_settings(cls, [], program="stage", description="")
        for cls in (PostPretrainSettings, FoldSettings, TeacherSettings, OofSettings)
    ]
    post_pretrain, _, teacher, _ = parsed
    assert isinstance(post_pretrain, PostPretrainSettings) and isinstance(teacher, TeacherSettings)
    bases = [Path(base) for setting, base in teacher.families.values() if setting != "ENCODER_FT_BASE"]
    assert [plan.merged for plan in post_pretrain.plans] == bases, "step 3 starts from what step 1 writes"
    assert len(bases) == 1
