"""``--dry-run`` tells, and does nothing."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.pipeline.small_run import pipeline, tree


def commands(script: str) -> list[str]:
    """What a shell would run of it."""
    return [line for line in script.splitlines() if line and not line.startswith("#")]


def test_it_writes_nothing(profile: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for flags in ((), ("--slurm",), ("--slurm", "--folds", "0", "--from", "3")):
        done = pipeline("--dry-run", "--run", "x", "--profile", str(profile), *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert tree(tmp_path) == before


def test_it_names_what_each_stage_reads_and_writes_and_its_threads(profile: Path, tmp_path: Path) -> None:
    said = pipeline("--dry-run", "--run", "x", "--profile", str(profile), cwd=tmp_path).stdout
    out = tmp_path / "out"
    assert f"#   reads    {out}/model_save/x/small_fold_{{0,1}}[_lora]" in said
    assert f"#   writes   {out}/model_save/x/distilled_student_fold_{{0,1}}" in said
    assert f"#   writes   {out}/sub/x_final_ensemble.csv" in said
    assert "#   after    step 3 of the same fold" in said
    assert said.count("1 thread each") == 9


def test_the_commands_of_a_local_run_are_those_of_its_tasks(profile: Path, tmp_path: Path) -> None:
    said = pipeline("--dry-run", "--profile", str(profile), "--from", "2", "--to", "4", cwd=tmp_path).stdout
    assert [line for line in commands(said) if " bash step" in line] == [
        "STEP2_CPUS=1 bash step2_make_folds.sh",
        *(f"TEACHER_FOLDS={k} FOLD={k} STEP3_CPUS=1 bash step3_train_teachers.sh" for k in (0, 1)),
        *(f"INFER_FOLDS={k} FOLD={k} STEP4_CPUS=1 bash step4_infer_teacher_logits.sh" for k in (0, 1)),
    ]


def test_a_shell_can_run_what_it_says_for_slurm(profile: Path, tmp_path: Path) -> None:
    """With an sbatch in its place that writes down how it was called: the lines must be whole shell commands."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(
        f'#!/bin/sh\necho "$PROFILE $*" >>{shlex.quote(str(tmp_path))}/calls\n'
        f"grep -c . {shlex.quote(str(tmp_path))}/calls\n"
    )
    (tools / "sbatch").chmod(0o755)
    flags = ("--slurm", "--dry-run", "--run", "x", "--profile", str(profile), "--sbatch", "--comment='two words'")
    said = pipeline(*flags, cwd=tmp_path).stdout
    path = f"{tools}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-eu"], input=said, env={"PATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 9 and all(call.startswith(str(profile)) for call in calls)
    assert "--array=0-1 --dependency=afterok:1:2 --kill-on-invalid-dep=yes" in calls[2]
    assert "--dependency=aftercorr:3" in calls[3]
    assert calls[3].endswith("--comment=two words step4_infer_teacher_logits.sh")


def test_help_and_a_wrong_flag_are_answered_from_anywhere(tmp_path: Path) -> None:
    helped = pipeline("--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert all(flag in helped.stdout for flag in ("--from", "--slurm", "--families", "status x", "resume x"))
    wrong = pipeline("--form", "2", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean --from?" in wrong.stderr


def test_who_has_seen_enough_gets_no_traceback(profile: Path, tmp_path: Path) -> None:
    command = f"bash {REPOSITORY / 'pipeline.sh'} --dry-run --profile {profile} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("cd ") and not done.stderr


def test_pipeline_sh_is_short_and_executable() -> None:
    script = REPOSITORY / "pipeline.sh"
    assert script.stat().st_mode & 0o111
    assert len(script.read_text("utf-8").splitlines()) <= 40
