"""A student killed in the middle goes on and ends with the same weights."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arena_distill.training.trainer import last_whole_checkpoint
from tests.conftest import is_json
from tests.training.student_runs import quick_settings, run_mode, start


def _settings(backbones: Path, small_train_csv: Path, model_dir: Path) -> dict[str, object]:
    return quick_settings(small_train_csv, backbones / "bert", model_dir) | {
        "student_epochs": 6,
        "student_save_steps": 3,
        "student_early_stopping": 0,
        "student_swap_augment": True,
    }


def _assert_same_weights(first: Path, second: Path) -> None:
    one, two = (load_file(path / "model.safetensors") for path in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] == two[name]).all(), name


@pytest.mark.slow
def test_after_sigkill_the_same_command_ends_with_the_same_weights(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    run_mode("student-train", **_settings(backbones, small_train_csv, tmp_path / "whole"))
    killed = tmp_path / "killed"
    settings = _settings(backbones, small_train_csv, killed)
    process = start("student-train", **settings)
    deadline = time.monotonic() + 120
    while not any(map(is_json, tmp_path.glob(".killed.partial-*/training/checkpoint-*/trainer_state.json"))):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists(), "the run ended before it was killed"
    again = start("student-train", **settings)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "going on from checkpoint-" in output
    _assert_same_weights(tmp_path / "whole", killed)


def test_a_torn_checkpoint_is_removed_and_the_one_before_it_taken(tmp_path: Path) -> None:
    def checkpoint(step: int, state: str) -> Path:
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        save_file({"weight": np.zeros(3)}, directory / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (directory / name).write_bytes(b"x")
        (directory / "trainer_state.json").write_text(state)
        return directory

    checkpoint(9, "{}")
    whole = checkpoint(100, "{}")
    torn = checkpoint(200, '{"global_step": 20')
    cut = checkpoint(250, "{}")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-4])
    half = checkpoint(300, "{}")
    (half / "optimizer.pt").unlink()
    assert last_whole_checkpoint(tmp_path) == whole
    assert not torn.exists() and not half.exists() and not cut.exists()


@pytest.mark.parametrize("stopped_early", [False, True])
def test_killed_between_the_last_step_and_publishing_it_publishes_the_same_weights(
    stopped_early: bool, backbones: Path, small_train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arena_distill.training import student

    settings = _settings(backbones, small_train_csv, tmp_path / "s")
    if stopped_early:  # a learning rate that ruins the model at once
        settings |= {"student_early_stopping": 1, "student_learning_rate": 0.3, "student_warmup_ratio": 0}
    run_mode("student-train", **settings)
    first = shutil.move(tmp_path / "s", tmp_path / "first")

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(student, "_finish", die)
        run_mode("student-train", **settings)
    run_mode("student-train", **settings)
    _assert_same_weights(Path(first), tmp_path / "s")
