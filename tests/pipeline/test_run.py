"""``./pipeline.sh`` with the real stage scripts: a run that fails, goes on, and is made again by its own script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arena_distill.pipeline.run_record import RunRecord
from arena_distill.runtime.stages import TRAIN_TEACHERS
from tests.conftest import REPOSITORY
from tests.pipeline.small_run import pipeline, tree


def started(record: RunRecord, since: int = 0) -> list[tuple[str, int | None, int | None]]:
    """Stage, task and exit code of every task, in the order of the table."""
    tasks = record.local_tasks()[since:]
    return sorted((task.stage, task.task, task.exit_code) for task in tasks)


@pytest.mark.slow
def test_a_run_with_a_broken_fold_is_resumed_and_then_made_again(
    profile: Path, tmp_path: Path, backbones: Path
) -> None:
    out = tmp_path / "out"
    obstacle = out / "model_save" / "x" / "small_fold_1_lora"
    obstacle.mkdir(parents=True)
    (obstacle / "thesis.txt").write_text("not a teacher")
    flags = ("--from", "2", "--to", "5", "--profile", str(profile))
    base = {"LLAMA_FT_BASE": backbones / "llama"}

    broken = pipeline(*flags, "--run", "x", cwd=tmp_path, **base)
    assert broken.returncode == 3, broken.stdout + broken.stderr
    assert "step3 fold 1 failed with exit code 3" in broken.stdout
    assert f"{obstacle}: holds something that step3_train_teachers did not make" in broken.stdout
    assert "not started, as they wait for it: step4, step5 (2)" in broken.stdout
    record = RunRecord(out / "model_save" / "x")
    assert (TRAIN_TEACHERS.name, 1, 3) in started(record)
    assert ("step4_infer_teacher_logits", 0, 0) in started(record)

    shutil.rmtree(obstacle)
    before = len(record.local_tasks())
    settings = {"OUTPUT_DIR": out}  # where the run is; the profile, which says so too, is part of what it was told
    resumed = pipeline("resume", "x", cwd=tmp_path, **settings)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert started(record, before) == [
        *((TRAIN_TEACHERS.name, 1, 0), ("step4_infer_teacher_logits", 1, 0)),
        *(("step5_distill_student", fold, 0) for fold in (0, 1)),
    ]

    whole = tree(out / "model_save" / "x")
    done = pipeline("resume", "x", cwd=tmp_path, **settings)
    assert done.returncode == 0 and "nothing left to do" in done.stdout, done.stdout + done.stderr
    changed = {path for path, when in tree(out / "model_save" / "x").items() if whole.get(path) != when}
    assert all(path.name in ("pipeline", "lock", "holder.json") for path in changed), changed

    profile.unlink()  # the run has kept what it said
    script = out / "model_save" / "x" / "reproduce.sh"
    environment = {**os.environ, "RUN": "again", "TEACHER_LR": "0.5", "N_FOLDS": "4"}  # of this shell, not of the run
    again = subprocess.run(
        ["bash", str(script), "--to", "4"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stdout + again.stderr
    for name in ("teacher_logits/small_fold_1/rows.parquet", "small_fold_1_lora/adapter_model.safetensors"):
        first, second = (out / "model_save" / run / name for run in ("x", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_a_run_goes_on_only_with_what_it_was_told(profile: Path, tmp_path: Path) -> None:
    told = {"PROFILE": profile, "OUTPUT_DIR": tmp_path / "out", "RUN": "x"}
    assert pipeline("--from", "2", "--to", "2", cwd=tmp_path, **told).returncode == 0

    other = pipeline("resume", "x", cwd=tmp_path, **told, TEACHER_LR="0.5")
    assert other.returncode == 2
    assert "TEACHER_LR=0.5: run x began with none -> unset it" in other.stderr

    profile.write_text(profile.read_text("utf-8").replace("STUDENT_MAX_STEPS=3", "STUDENT_MAX_STEPS=4"), "utf-8")
    edited = pipeline("resume", "x", cwd=tmp_path, **told)
    assert edited.returncode == 2
    assert "STUDENT_MAX_STEPS 3 -> 4" in edited.stderr

    profile.write_text(profile.read_text("utf-8").replace("STUDENT_MAX_STEPS=4", "STUDENT_MAX_STEPS=3"), "utf-8")
    with profile.open("a") as lines:
        lines.write("SBATCH_MEM_PER_NODE=1G\nSTEP2_CPUS=1\n")  # where and with how much it runs may change
    allowed = pipeline("resume", "x", cwd=tmp_path, **told, PIPELINE_SBATCH="--nice")
    assert allowed.returncode == 0, allowed.stderr
    assert "nothing left to do" in allowed.stdout

    nobody = pipeline("resume", "y", cwd=tmp_path, **told)
    assert nobody.returncode == 2 and "nothing was ever started there" in nobody.stderr


def test_the_record_holds_the_settings_and_no_secret(profile: Path, tmp_path: Path) -> None:
    told = {"PROFILE": profile, "OUTPUT_DIR": tmp_path / "out", "RUN": "x", "TEACHER_LR": "2e-4"}
    done = pipeline("--from", "2", "--to", "2", cwd=tmp_path, **told, HF_TOKEN="hf_s3cret", SCRATCH_BASE="")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "out" / "model_save" / "x"
    record = json.loads((run / "pipeline" / "run.json").read_text("utf-8"))
    assert record["variables"]["TEACHER_LR"] == "2e-4"
    assert record["stages"] == ["step2_make_folds"]
    assert record["profile_entries"]["STUDENT_NAME"] == "student"
    assert not [file for file in run.rglob("*") if file.is_file() and b"hf_s3cret" in file.read_bytes()]
    assert "export TEACHER_LR=2e-4" in (run / "reproduce.sh").read_text("utf-8")

    done = pipeline("--from", "9", "--to", "9", cwd=tmp_path, **told)
    assert done.returncode == 3, "there is no submission to evaluate"
    record = json.loads((run / "pipeline" / "run.json").read_text("utf-8"))
    assert record["stages"] == ["step2_make_folds", "step9_eval"], "a run comprises all that was asked of it"


def test_reproduce_sh_passes_shellcheck(profile: Path, tmp_path: Path) -> None:
    told = {"PROFILE": profile, "OUTPUT_DIR": tmp_path / "it's here", "RUN": "x"}
    assert pipeline("--from", "2", "--to", "2", cwd=tmp_path, **told).returncode == 0
    script = tmp_path / "it's here" / "model_save" / "x" / "reproduce.sh"
    checked = subprocess.run([Path(sys.executable).with_name("shellcheck"), script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("named", [False, True], ids=["a file", "conf/profiles"])
def test_reproduce_sh_refuses_another_profile_than_the_runs(named: bool, profile: Path, tmp_path: Path) -> None:
    told = {"PROFILE": "tiny" if named else profile, "OUTPUT_DIR": tmp_path / "out", "RUN": "x"}
    told |= {"TRAIN_CSV": tmp_path / "none.csv"} if named else {}
    pipeline("--from", "2", "--to", "2", cwd=tmp_path, **told)
    run = tmp_path / "out" / "model_save" / "x"
    script = run / "reproduce.sh"
    if named:
        text = script.read_text("utf-8")
        kept = (run / "pipeline" / "profile.env").read_bytes()
        assert kept == (REPOSITORY / "conf" / "profiles" / "tiny.env").read_bytes()
        script.write_text(text.replace('!= "', '!= "0', 1) if "sha256sum" in text else "", "utf-8")
    done = subprocess.run(["bash", str(script), "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (2 if named else 0), done.stdout + done.stderr
    if named:
        assert "conf/profiles/tiny.env has changed since" in done.stderr
