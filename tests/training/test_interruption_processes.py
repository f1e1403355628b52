"""Two processes that train one model, stopped by a file: both after the same step, and they go on from it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from arena_distill.runtime.heartbeat import HEARTBEAT_FILE
from arena_distill.runtime.interruption import STOP_FILE
from tests.conftest import is_json
from tests.training.teacher_runs import adapter_of, quick_step3, run_script, start, step2

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.slow
def test_two_processes_stopped_by_a_file_end_with_the_bytes_of_two_that_nothing_stopped(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    def settings(output: Path) -> dict[str, object]:
        quick = quick_step3(small_train_csv, backbones / "llama", output) | {"teacher_lora_dropout": 0.3}
        return quick | {"teacher_max_steps": 80, "teacher_save_steps": 1000, "teacher_grad_accum": 1}

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for output in (whole, stopped):
        step2(train_csv=small_train_csv, n_folds=3, output_dir=output)
    code, printed = run_script("train_teachers.py", processes=2, **settings(whole))
    assert code == 0, printed

    beat, stop = tmp_path / "beat.json", tmp_path / "stop"
    environment = {HEARTBEAT_FILE: str(beat), STOP_FILE: str(stop)}
    process = start("train_teachers.py", processes=2, environment=environment, **settings(stopped))
    deadline = time.monotonic() + 120
    while not is_json(beat):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
        time.sleep(0.01)
    stop.touch()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0, "torchrun, which has a code of its own"
    assert printed.count("the same command goes on from there") == 1, printed
    assert "RuntimeError" not in printed and "exitcode  : 75" in printed, printed
    found = re.search(r"step (\d+) of 80 is in checkpoint-\1\n", printed)
    assert found and 0 < int(found[1]) < 80, printed
    (checkpoint,) = (stopped / "model_save").glob(".*.partial-*/training/checkpoint-*")
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert json.loads(beat.read_text("utf-8"))["saved"] == int(found[1])

    stop.unlink()
    code, printed = run_script("train_teachers.py", processes=2, environment=environment, **settings(stopped))
    assert code == 0 and f"going on from {checkpoint.name}" in printed, printed
    one, two = ((adapter_of(output) / WEIGHTS).read_bytes() for output in (whole, stopped))
    assert one == two
