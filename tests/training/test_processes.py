"""Two processes that train one model end where one process ends, and only one of them speaks and writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from arena_distill.runtime.artifacts import locked
from arena_distill.training.arguments import Schedule
from arena_distill.training.processes import is_main_process, locked_by_main, process_count, same_for_all, say
from arena_distill.training.trainer import last_whole_checkpoint
from tests.training.teacher_runs import (
    EXTRA,
    FOLDS,
    adapter_of,
    contents,
    manifest_of,
    quick_step1,
    quick_step3,
    run_script,
    step1,
    step2,
    step3,
)

ADAPTER = "adapter_model.safetensors"


def _losses(directory: Path) -> list[float]:
    log = json.loads((directory / "training_log.json").read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


def _assert_same_training(one: Path, two: Path) -> None:
    first, second = _losses(one), _losses(two)
    assert len(first) >= 4
    assert max(first) - min(first) > 1e-3, "nothing changes: the curves would agree whatever happened"
    np.testing.assert_allclose(first, second, rtol=1e-4)
    weights, others = load_file(one / ADAPTER), load_file(two / ADAPTER)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def _batches(prefix: str, processes: int) -> dict[str, object]:
    """Eight rows a step, whoever computes them; two epochs of a number of rows that eight does not divide."""
    return {
        f"{prefix}_per_device_bs": 8 // processes,
        f"{prefix}_grad_accum": 1,
        f"{prefix}_subset_size": 41,
        f"{prefix}_max_steps": 0,
        f"{prefix}_epochs": 2,
        f"{prefix}_lora_dropout": 0.0,
        f"{prefix}_lr": 1e-3,
    }


@pytest.mark.slow
def test_two_processes_train_the_teacher_that_one_trains(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    for processes, output in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=output)
        settings = quick_step3(small_train_csv, backbones / "llama", output) | _batches("teacher", processes)
        settings |= {"teacher_swap_augment": True, "teacher_merge": "1", "seed": 42}
        if processes == 1:
            step3(**settings)
            continue
        code, printed = run_script("train_teachers.py", processes=2, **settings)
        assert code == 0, printed
        assert printed.count("parameters, ") == 1 and printed.count(": trained in") == 1, "one speaks for both"
        before = contents(output / "model_save")
        code, printed = run_script("train_teachers.py", processes=2, **settings)
        assert code == 0 and printed.count("tiny_fold_1_lora: up to date") == 1, printed
        assert contents(output / "model_save") == before
    one, two = adapter_of(tmp_path / "one"), adapter_of(tmp_path / "two")
    _assert_same_training(one, two)
    found, other = manifest_of(one), manifest_of(two)
    assert found["metrics"]["held_out"]["log_loss"] == pytest.approx(other["metrics"]["held_out"]["log_loss"], abs=1e-5)
    assert (found["processes"], other["processes"]) == (1, 2)
    assert not [path for path in (tmp_path / "two" / "model_save").iterdir() if "partial" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["preference", "lm"])
def test_two_processes_post_pretrain_the_model_that_one_does(objective: str, backbones: Path, tmp_path: Path) -> None:
    for processes, output in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        settings = quick_step1(EXTRA, backbones / "llama", output) | _batches("postpre", processes)
        settings |= {"postpre_objective": objective, "train_csv": ""}
        if processes == 1:
            step1(**settings)
        else:
            code, printed = run_script("post_pretrain.py", processes=2, **settings)
            assert code == 0, printed
    one, two = (tmp_path / name / "model_save" / "post_pretrain_llama_lora" for name in ("one", "two"))
    assert (manifest_of(one)["processes"], manifest_of(two)["processes"]) == (1, 2)
    _assert_same_training(one, two)


@pytest.mark.slow
def test_two_processes_that_are_refused_end_with_one_error_and_leave_nothing(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=tmp_path)
    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path)
    with locked(adapter_of(tmp_path)):
        code, printed = run_script("train_teachers.py", processes=2, **settings)
    assert code != 0
    assert "another job is writing it" in printed
    assert not adapter_of(tmp_path).exists()


# Who speaks, writes and counts


def test_one_process_is_the_main_one_and_waits_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert (process_count(), is_main_process()) == (1, True)
    assert same_for_all({"a": 1}) == {"a": 1}
    say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_another_rank_says_nothing_and_takes_no_lock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    say("hello")
    assert capsys.readouterr().out == ""
    with locked(tmp_path / "out"), locked_by_main(tmp_path / "out"):
        assert process_count() == 2


def test_the_global_batch_counts_rows_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(
        epochs=1, max_steps=0, batch_size=3, grad_accum=5, learning_rate=1, warmup_ratio=0, weight_decay=0, seed=0,
        bf16=False,
    )  # fmt: skip
    assert schedule.global_batch == 15
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert schedule.global_batch == 60


def test_a_checkpoint_as_fsdp_writes_it_is_whole(tmp_path: Path) -> None:
    """Sharded training names the optimizer's file otherwise; taken for torn, every checkpoint would be deleted."""
    directory = tmp_path / "checkpoint-20"
    directory.mkdir()
    save_file({"weight": np.zeros(3)}, directory / ADAPTER)
    for name in ("optimizer.bin", "pytorch_model_fsdp.bin", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (directory / name).write_bytes(b"x")
    (directory / "trainer_state.json").write_text("{}")
    assert last_whole_checkpoint(tmp_path) == directory
    shutil.copytree(directory, tmp_path / "checkpoint-40")
    (tmp_path / "checkpoint-40" / "optimizer.bin").unlink()
    assert last_whole_checkpoint(tmp_path) == directory
