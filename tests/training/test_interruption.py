"""A training that a signal stops, at whatever moment, goes on and ends with the bytes of one that nothing stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from arena_distill.evaluation.heldout import HELDOUT_FILE
from arena_distill.runtime.errors import EXIT_REQUEUE, run_command
from arena_distill.runtime.heartbeat import HEARTBEAT_FILE
from arena_distill.training import distill, post_pretrain, student_fit
from arena_distill.training.resumable import train_resumably
from tests.conftest import is_json
from tests.training import distill_runs, student_runs
from tests.training.distill_runs import checkpoints, student_dir
from tests.training.teacher_runs import (
    EXTRA,
    adapter_of,
    manifest_of,
    quick_step1,
    quick_step3,
    start,
    step1,
    step2,
    step3,
)

ADAPTER = "adapter_model.safetensors"
STOPPED = "stopped on a signal; what is finished is kept, and the same command goes on from there"
Moment = tuple[str, int]  # event of the Trainer, and the step at which it is waited for


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that the tests start: sums of other numbers of threads may differ in the last bit."""
    with _one_thread():
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class SignalAt(TrainerCallback):
    """Sends this process a signal, once, at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        self.step, self.sent = step, False
        setattr(self, event, self.send)

    def send(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Where the Trainer is."""
        if state.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGUSR1)


def stop_at(moment: Moment, module: ModuleType, run: Callable[[], None]) -> None:
    """Run until the signal of a moment, which must end the run."""
    callback = SignalAt(*moment)

    def with_signal(trainer: Any, work: Path, name: str) -> None:
        trainer.add_callback(callback)
        train_resumably(trainer, work, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_resumably", with_signal)
        assert run_command(run) == EXIT_REQUEUE
    assert callback.sent, "the run did not come to that moment"


def results(directory: Path) -> dict[str, bytes]:
    """Every file of a finished model that tells nothing of times and places."""
    names = {"model.safetensors", ADAPTER, "classifier_head.safetensors", "calibration.json", HELDOUT_FILE}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name in names}


def last_step(model_save: Path) -> int:
    """Of the newest checkpoint that an unfinished run has left; 0 if there is none."""
    found = model_save.glob(".*.partial-*/training/checkpoint-*")
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


# Step 5: an evaluation and a checkpoint every fourth step; the best one counts


def student_run(root: Path, base: Path, output: Path) -> dict[str, Any]:
    return distill_runs.quick(
        root,
        base,
        output,
        student_max_steps=10,
        student_save_steps=4,
        student_early_stopping=0,
        student_swap_augment=True,
        student_lora_dropout=0.3,
    )


@pytest.fixture(scope="module")
def student(distill_root: Path, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    with _one_thread():
        distill_runs.distill(student_run(distill_root, backbones / "llama", output))
    return student_dir(output)


STOPS: Sequence[tuple[Moment, int]] = [  # and the checkpoint that is there afterwards
    (("on_train_begin", 0), 0),
    (("on_step_begin", 0), 1),
    (("on_substep_end", 2), 3),
    (("on_prediction_step", 4), 4),
    (("on_step_begin", 5), 6),
    (("on_save", 8), 8),
    (("on_step_end", 9), 9),
    (("on_prediction_step", 10), 10),
]


def test_a_student_stopped_again_and_again_ends_with_the_same_bytes(
    student: Path, distill_root: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = student_run(distill_root, backbones / "llama", tmp_path)
    for moment, step in STOPS:
        stop_at(moment, student_fit, lambda: distill_runs.distill(settings))
        said = capsys.readouterr()
        assert said.err.count(STOPPED) == 1 and "Traceback" not in said.err
        assert not student_dir(tmp_path).exists()
        assert last_step(tmp_path / "model_save") == step, moment
    distill_runs.distill(settings)
    assert "going on from checkpoint-10" in capsys.readouterr().out
    assert results(student_dir(tmp_path)) == results(student)
    assert manifest_of(student_dir(tmp_path))["metrics"] == manifest_of(student)["metrics"]
    kept = [[path.name for path in checkpoints(directory)] for directory in (student_dir(tmp_path), student)]
    assert kept[0] == kept[1]
    assert not list((tmp_path / "model_save").glob(".*partial*"))


@pytest.mark.parametrize("moment", ["cross_fit", "_finish", "publish"])
def test_a_signal_after_the_last_step_loses_no_step(
    moment: str,
    student: Path,
    distill_root: Path,
    backbones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = student_run(distill_root, backbones / "llama", tmp_path)
    done = getattr(distill, moment)

    def signalled(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return done(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(distill, moment, signalled)
        assert run_command(lambda: distill_runs.distill(settings)) == EXIT_REQUEUE
    whole = student_dir(tmp_path).exists()
    assert whole == (moment == "publish"), "a directory is published and tidied up, or it is not"
    capsys.readouterr()
    distill_runs.distill(settings)
    assert ("up to date" if whole else "going on from checkpoint-") in capsys.readouterr().out
    assert results(student_dir(tmp_path)) == results(student)
    assert not list((tmp_path / "model_save").glob(".*partial*"))


# main.py, which evaluates and saves after each epoch


def test_a_student_stopped_within_and_at_the_end_of_epochs_ends_with_the_same_weights(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    def settings(name: str) -> dict[str, object]:
        base = student_runs.quick_settings(small_train_csv, backbones / "bert", tmp_path / name / "student")
        return base | {"student_early_stopping": 0, "student_train_batch_size": 32, "student_epochs": 3}

    student_runs.run_mode("student-train", **settings("whole"))
    whole = manifest_of(tmp_path / "whole" / "student")
    epoch = whole["metrics"]["steps"] // 3
    assert epoch >= 3
    stops = [
        (("on_step_begin", 1), 2),
        (("on_step_begin", epoch - 1), epoch),  # the step is the epoch's last: it is evaluated first
        (("on_prediction_step", 2 * epoch), 2 * epoch),
        (("on_step_end", 2 * epoch + 1), 2 * epoch + 1),
        (("on_step_begin", 3 * epoch - 1), 3 * epoch),
    ]
    for moment, step in stops:
        stop_at(moment, student_fit, lambda: student_runs.run_mode("student-train", **settings("stopped")))
        assert last_step(tmp_path / "stopped") == step, moment
    student_runs.run_mode("student-train", **settings("stopped"))
    assert results(tmp_path / "stopped" / "student") == results(tmp_path / "whole" / "student")
    assert manifest_of(tmp_path / "stopped" / "student")["metrics"] == whole["metrics"]


# Step 1


def test_a_post_pretraining_stopped_before_its_first_checkpoint_ends_with_the_same_bytes(
    backbones: Path, tmp_path: Path
) -> None:
    def settings(name: str) -> dict[str, object]:
        quick = quick_step1(EXTRA, backbones / "llama", tmp_path / name)
        return quick | {"postpre_save_steps": 1000, "postpre_max_steps": 5, "postpre_lora_dropout": 0.3}

    step1(**settings("whole"))
    for moment in (("on_step_begin", 1), ("on_substep_end", 3)):
        stop_at(moment, post_pretrain, lambda: step1(**settings("stopped")))
    step1(**settings("stopped"))
    whole, stopped = (tmp_path / name / "model_save" for name in ("whole", "stopped"))
    assert results(stopped / "post_pretrain_llama_lora") == results(whole / "post_pretrain_llama_lora")
    assert results(stopped / "post_pretrain_llama") == results(whole / "post_pretrain_llama")


# Step 3, in processes of their own

STEPS = 60


@pytest.fixture
def teacher_run(small_train_csv: Path, backbones: Path, tmp_path: Path) -> dict[str, object]:
    """Many steps, and no checkpoint but the last."""
    step2(train_csv=small_train_csv, n_folds=3, output_dir=tmp_path)
    quick = quick_step3(small_train_csv, backbones / "llama", tmp_path)
    return quick | {"teacher_max_steps": STEPS, "teacher_save_steps": 1000, "teacher_lora_dropout": 0.3}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stopped(process: subprocess.Popen[str]) -> str:
    """What it printed until it ended."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE, output
    assert output.count(STOPPED) == 1 and "Traceback" not in output, output
    return output


def test_a_teacher_stopped_with_sigterm_ends_with_the_same_bytes(
    teacher_run: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = tmp_path / "beat.json"
    process = start("train_teachers.py", environment={HEARTBEAT_FILE: str(beat)}, **teacher_run)
    wait_until(lambda: is_json(beat), process)
    process.send_signal(signal.SIGTERM)
    output = stopped(process)
    step = last_step(tmp_path / "model_save")
    assert 0 < step < STEPS and f"step {step} of {STEPS} is in checkpoint-{step}" in output
    said = json.loads(beat.read_text("utf-8"))
    assert (said["saved"], said["done"], said["total"], said["unit"]) == (step, step, STEPS, "steps")
    assert not adapter_of(tmp_path).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HEARTBEAT_FILE, str(beat))
        assert run_command(lambda: step3(**teacher_run)) == 0
    assert f"going on from checkpoint-{step}" in capsys.readouterr().out
    assert json.loads(beat.read_text("utf-8"))["saved"] == STEPS + 1, "each step once, and the finished adapter"
    once = results(adapter_of(tmp_path))
    step3(**teacher_run, force=True)
    assert "going on" not in capsys.readouterr().out
    assert results(adapter_of(tmp_path)) == once


def children_that_hold_back_sigterm(process: int) -> int:
    """How many of a process's children have blocked the signal."""
    count = 0
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        with suppress(FileNotFoundError):  # it has ended
            status = Path(f"/proc/{child}/status").read_text()
            count += int(status.partition("SigBlk:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1
    return count


def test_a_signal_to_all_processes_at_once_does_not_end_a_data_loader_before_the_checkpoint(
    teacher_run: dict[str, object], tmp_path: Path
) -> None:
    process = start("train_teachers.py", new_session=True, **teacher_run, teacher_num_workers=2)
    wait_until(lambda: children_that_hold_back_sigterm(process.pid) == 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    stopped(process)
    assert 0 < last_step(tmp_path / "model_save") < STEPS


def test_a_signal_while_the_model_is_loaded_stops_at_once(teacher_run: dict[str, object], tmp_path: Path) -> None:
    process = start("train_teachers.py", **teacher_run)
    assert process.stdout is not None
    while ": fold 1 of" not in (line := process.stdout.readline()):
        assert line, "it ended"
    process.send_signal(signal.SIGUSR1)
    stopped(process)
    assert last_step(tmp_path / "model_save") == 0
