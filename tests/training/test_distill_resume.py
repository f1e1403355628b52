"""A student killed at any moment ends with the weights of one that was not, and a finished one is left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from arena_distill.evaluation.heldout import HELDOUT_FILE
from arena_distill.runtime.errors import run_command
from arena_distill.training import distill as distill_module
from arena_distill.training import student_fit
from arena_distill.training.resumable import train_resumably
from arena_distill.training.trainer import is_finished
from tests.conftest import REPOSITORY, is_json
from tests.training.distill_runs import (
    ADAPTER,
    NAME,
    SCRIPT,
    assert_same_weights,
    change_table,
    checkpoints,
    copy_of,
    distill,
    quick,
    student_dir,
    table_path,
)
from tests.training.teacher_runs import contents, flags, manifest_of, start

HEAD = "classifier_head.safetensors"
NAME_FOLD = f"distilled_{NAME}_fold_1"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the context torch computes with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that the tests start: sums of other numbers of threads may differ in the last bit."""
    with threads(1):
        yield


def results(directory: Path) -> dict[str, bytes]:
    """Every file of a finished student that tells nothing of times and places."""
    names = {ADAPTER, "model.safetensors", "classifier_head.pt", HEAD, "calibration.json", HELDOUT_FILE}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name in names}


def partial(output: Path) -> Path:
    """Where an unfinished student is."""
    (path,) = (output / "model_save").glob(f".{NAME_FOLD}.partial-*")
    return path


# Killed


def long_run(distill_root: Path, base: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Forty steps with dropout, in both orders, a checkpoint after each."""
    return quick(
        distill_root,
        base,
        output,
        student_max_steps=40,
        student_save_steps=1,
        student_early_stopping=0,
        student_swap_augment=True,
        student_lora_dropout=0.3,
        **settings,
    )


@pytest.fixture(scope="module")
def whole(distill_root: Path, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run without interruption."""
    output = tmp_path_factory.mktemp("uninterrupted")
    with threads(1):
        distill(long_run(distill_root, backbones / "llama", output))
    return student_dir(output)


@pytest.mark.slow
@pytest.mark.parametrize("seen", [1, 20])
def test_after_sigkill_the_same_command_goes_on_and_ends_with_the_same_bytes(
    seen: int,
    whole: Path,
    distill_root: Path,
    backbones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = long_run(distill_root, backbones / "llama", tmp_path)
    process = start(SCRIPT, **settings)
    deadline = time.monotonic() + 120
    while _last_step(tmp_path) < seen:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not student_dir(tmp_path).exists(), "the run ended before it was killed"
    done = _last_step(tmp_path)
    assert seen <= done < 40
    distill(settings)
    out = capsys.readouterr().out
    assert f"{student_dir(tmp_path)}: going on from checkpoint-" in out
    assert int(out.partition("going on from checkpoint-")[2].split()[0]) >= done - 1
    assert results(student_dir(tmp_path)) == results(whole)
    assert manifest_of(student_dir(tmp_path))["initial_sha256"] == manifest_of(whole)["initial_sha256"]
    assert not list((tmp_path / "model_save").glob(".*partial*"))


def _last_step(output: Path) -> int:
    """Step of the newest checkpoint that is whole; 0 if there is none."""
    found = (output / "model_save").glob(f".{NAME_FOLD}.partial-*/training/checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.rpartition("-")[2]) for path in found if is_json(path)), default=0)


class Killed(BaseException):
    """The process ends here."""


def die(*_: object, **__: object) -> None:
    raise Killed


ENDS: dict[str, dict[str, Any]] = {
    "by steps": {},
    # A learning rate that ruins the model at once.
    "early": {"student_early_stopping": 1, "student_lr": 0.3, "student_warmup_ratio": 0, "student_max_steps": 20},
}


@pytest.fixture(scope="module", params=ENDS)
def ended(
    request: pytest.FixtureRequest, distill_root: Path, backbones: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A student that came to its end, and its settings."""
    settings = ENDS[request.param] | {"student_swap_augment": True, "student_lora_dropout": 0.3}
    output = tmp_path_factory.mktemp("ended")
    with threads(1):
        distill(quick(distill_root, backbones / "llama", output, **settings))
    return student_dir(output), settings


@pytest.mark.parametrize("moment", ["cross_fit", "_finish", "publish"])
def test_killed_between_the_last_step_and_publishing_it_publishes_the_same_bytes_without_training_anew(
    moment: str,
    ended: tuple[Path, dict[str, Any]],
    distill_root: Path,
    backbones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, settings = ended
    killed = quick(distill_root, backbones / "llama", tmp_path, **settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distill_module, moment, die)
        distill(killed)
    assert not student_dir(tmp_path).exists()
    capsys.readouterr()
    distill(killed)
    assert results(student_dir(tmp_path)) == results(whole)
    assert manifest_of(student_dir(tmp_path))["metrics"] == manifest_of(whole)["metrics"]
    kept = [[path.name for path in checkpoints(directory)] for directory in (student_dir(tmp_path), whole)]
    assert kept[0] == kept[1]
    assert "going on from checkpoint-" in capsys.readouterr().out, "it began anew"


def test_killed_after_publishing_it_is_up_to_date(
    distill_root: Path,
    backbones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = quick(distill_root, backbones / "llama", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distill_module, "wait_for_all", die)
        distill(settings)
    before = contents(student_dir(tmp_path))
    capsys.readouterr()
    distill(settings)
    assert f"{student_dir(tmp_path)}: up to date" in capsys.readouterr().out
    assert contents(student_dir(tmp_path)) == before


def test_killed_while_it_replaces_another_that_one_stays(
    students: Path, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_of(students, tmp_path / "root")
    before = contents(student_dir(root))
    settings = quick(root, backbones / "llama", student_overwrite=True, student_lr=2e-2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distill_module, "publish", die)
        distill(settings)
    assert contents(student_dir(root)) == before
    distill(settings)
    assert manifest_of(student_dir(root))["settings"]["student_lr"] == 2e-2


def test_what_a_run_with_other_settings_left_is_not_gone_on_from(
    distill_root: Path,
    backbones: Path,
    students: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distill_module, "cross_fit", die)
        distill(quick(distill_root, backbones / "llama", tmp_path, student_lr=2e-2))
    left = partial(tmp_path)
    capsys.readouterr()
    distill(quick(distill_root, backbones / "llama", tmp_path))
    out = capsys.readouterr().out
    assert "going on" not in out and f"note: {left} is left from an interrupted run" in out
    assert results(student_dir(tmp_path)) == results(student_dir(students))


# Going on from a checkpoint of one's choice


def logged(directory: Path, key: str) -> dict[int, float]:
    """A figure of the training log by its step."""
    log = json.loads((directory / "training_log.json").read_text("utf-8"))
    return {entry["step"]: entry[key] for entry in log if key in entry}


def test_a_kept_checkpoint_is_gone_on_from_with_more_steps(
    students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = student_dir(students)
    checkpoint = checkpoints(finished)[-1]
    step = int(checkpoint.name.rpartition("-")[2])
    before = contents(students)
    longer = quick(students, backbones / "llama", tmp_path / "on", student_max_steps=10)
    capsys.readouterr()
    distill(longer | {"resume_checkpoint": checkpoint})
    assert f"going on from {checkpoint.name}" in capsys.readouterr().out
    directory = student_dir(tmp_path / "on")
    manifest = manifest_of(directory)
    assert manifest["metrics"]["steps"] == 10
    assert len(manifest["inputs"]["checkpoint"]) == 64
    scores, old = logged(directory, "eval_log_loss"), logged(finished, "eval_log_loss")
    assert list(scores) == list(range(2, 11, 2))
    assert all(scores[number] == old[number] for number in range(2, step + 1, 2)), "it began anew"
    assert contents(students) == before
    distill(longer | {"resume_checkpoint": checkpoint})
    assert f"{directory}: up to date" in capsys.readouterr().out
    distill(longer | {"output_dir": tmp_path / "anew"})
    assert results(directory) != results(student_dir(tmp_path / "anew"))


def test_a_run_that_goes_on_takes_the_weights_of_the_checkpoint(
    students: Path, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    """Someone has set them to what no initialisation gives, and steps are small."""
    root = copy_of(students, tmp_path / "root")
    checkpoint = checkpoints(student_dir(root))[-1]
    weights = load_file(checkpoint / ADAPTER)
    marked = [name for name in weights if "lora_A" in name]
    save_file(
        weights | {name: torch.ones_like(weights[name]) for name in marked}, checkpoint / ADAPTER, {"format": "pt"}
    )
    longer = {"student_max_steps": 6, "resume_checkpoint": checkpoint}
    distill(quick(distill_root, backbones / "llama", tmp_path / "on", **longer))
    found = load_file(student_dir(tmp_path / "on") / ADAPTER)
    assert marked and all((found[name] - 1).abs().max() < 0.1 for name in marked)


@pytest.mark.parametrize(("before", "now"), [(0, 5), (5, 1)])
def test_a_checkpoint_is_gone_on_from_with_the_patience_that_is_asked_for(
    before: int, now: int, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    """From a rate that ruins the model at once: whoever is patient goes on to the end."""
    ruin = {"student_lr": 0.3, "student_warmup_ratio": 0, "student_save_steps": 1}
    first = quick(distill_root, backbones / "llama", tmp_path / "first", **ruin, student_early_stopping=before)
    distill(first | {"student_max_steps": 2})
    (checkpoint,) = checkpoints(student_dir(tmp_path / "first"))
    settings = quick(distill_root, backbones / "llama", tmp_path / "on", **ruin, student_early_stopping=now)
    distill(settings | {"student_max_steps": 12, "resume_checkpoint": checkpoint})
    scores = list(logged(student_dir(tmp_path / "on"), "eval_log_loss").values())
    asked = next((step for step in range(2, 13) if _waited(scores[:step]) == now), 12) if now else 12
    assert len(scores) == asked == manifest_of(student_dir(tmp_path / "on"))["metrics"]["steps"]


def _waited(scores: list[float]) -> int:
    """Evaluations since the best one."""
    return len(scores) - 1 - scores.index(min(scores))


@pytest.mark.parametrize("kind", ["steps", "epochs"])
def test_the_last_checkpoint_of_a_finished_run_is_gone_on_from_with_more_steps(
    kind: str, distill_root: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record says that the run is at its end; that run is, and the longer one is not."""
    by_steps = {"student_max_steps": 4, "student_save_steps": 4}
    by_epochs = {"student_max_steps": 0, "student_epochs": 0.2, "student_save_steps": 4}  # 17 steps are an epoch
    short, longer = (
        (by_steps, by_steps | {"student_max_steps": 8})
        if kind == "steps"
        else (by_epochs, by_epochs | {"student_epochs": 0.4})
    )
    distill(quick(distill_root, backbones / "llama", tmp_path / "first", **short))
    (checkpoint,) = checkpoints(student_dir(tmp_path / "first"))
    assert checkpoint.name == "checkpoint-4" and is_finished(checkpoint)
    capsys.readouterr()
    distill(quick(distill_root, backbones / "llama", tmp_path / "on", resume_checkpoint=checkpoint, **longer))
    assert "going on from checkpoint-4" in capsys.readouterr().out
    manifest = manifest_of(student_dir(tmp_path / "on"))
    assert manifest["metrics"]["steps"] == (8 if kind == "steps" else 7)


def test_a_learning_rate_given_with_a_checkpoint_is_used_or_refused(
    students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest would say that it was used; the checkpoint remembers another."""
    checkpoint = checkpoints(student_dir(students))[-1]
    settings = quick(students, backbones / "llama", tmp_path, student_max_steps=10, student_lr=1e-6)
    capsys.readouterr()
    if code := run_command(lambda: distill(settings | {"resume_checkpoint": checkpoint})):
        assert code in (2, 3)
        assert "student_lr" in capsys.readouterr().err.lower()
        return
    rates = logged(student_dir(tmp_path), "learning_rate")
    step = int(checkpoint.name.rpartition("-")[2])
    new = {number: rate for number, rate in rates.items() if number > step}
    assert new and max(new.values()) <= 1e-6


def test_a_students_own_checkpoint_is_gone_on_from_in_its_place(
    students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(students, tmp_path / "root")
    checkpoint = checkpoints(student_dir(root))[-1]
    settings = quick(root, backbones / "llama", student_max_steps=10, resume_checkpoint=checkpoint)
    before = contents(root)
    assert run_command(lambda: distill(settings)) == 2
    assert "STUDENT_OVERWRITE=1" in capsys.readouterr().err
    assert contents(root) == before
    distill(settings | {"student_overwrite": True})
    assert f"going on from {checkpoint.name}" in capsys.readouterr().out
    assert manifest_of(student_dir(root))["metrics"]["steps"] == 10


def kill_at_step(step: int, settings: dict[str, Any]) -> None:
    """Train until ``step`` steps are done."""

    class Die(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step == step:
                raise Killed

    def train_and_die(trainer: Any, work: Path, name: str) -> None:
        trainer.add_callback(Die())
        train_resumably(trainer, work, name)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(student_fit, "train_resumably", train_and_die)
        distill(settings)


def test_a_checkpoint_of_an_unfinished_run_is_gone_on_from_by_a_run_with_other_settings(
    distill_root: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_at_step(2, quick(distill_root, backbones / "llama", tmp_path))
    (checkpoint,) = checkpoints(partial(tmp_path) / "training")
    capsys.readouterr()
    other = quick(distill_root, backbones / "llama", tmp_path, student_max_steps=6, resume_checkpoint=checkpoint)
    distill(other)
    assert f"going on from {checkpoint.name}" in capsys.readouterr().out
    assert manifest_of(student_dir(tmp_path))["metrics"]["steps"] == 6


def test_a_torn_checkpoint_is_refused_and_the_best_one_beside_it_is_not_taken_for_it(
    distill_root: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_at_step(4, quick(distill_root, backbones / "llama", tmp_path, student_max_steps=5))
    best, last = checkpoints(partial(tmp_path) / "training")
    (last / "optimizer.pt").unlink()
    other = quick(distill_root, backbones / "llama", tmp_path, student_max_steps=6, resume_checkpoint=last)
    capsys.readouterr()
    assert run_command(lambda: distill(other)) == 3
    assert f"RESUME_CHECKPOINT={last}" in capsys.readouterr().err
    assert best.is_dir() and not student_dir(tmp_path).exists()


def test_its_own_checkpoint_by_name_is_what_the_same_command_goes_on_from_anyway(
    distill_root: Path, backbones: Path, students: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick(distill_root, backbones / "llama", tmp_path)
    kill_at_step(2, settings)
    (checkpoint,) = checkpoints(partial(tmp_path) / "training")
    capsys.readouterr()
    distill(settings | {"resume_checkpoint": checkpoint})
    assert f"going on from {checkpoint.name}" in capsys.readouterr().out
    assert results(student_dir(tmp_path)) == results(student_dir(students))


# Again


def test_a_second_run_says_up_to_date_without_importing_torch(students: Path, backbones: Path) -> None:
    before = contents(students)
    script = (
        "import sys; sys.path.insert(0, 'scripts'); sys.argv[0] = 'x'\nimport distill_student\n"
        "distill_student.main()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    settings = quick(students, backbones / "llama", student_folds="0,1")
    command = [sys.executable, "-c", script, *flags(**settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert len(lines) == 2
    for fold, line in zip((0, 1), lines, strict=True):
        assert line.startswith(f"{student_dir(students, fold)}: up to date")
    assert heavy == "[]"
    assert contents(students) == before


def test_settings_that_change_no_weight_leave_it_up_to_date(
    students: Path, backbones: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(students)
    capsys.readouterr()
    distill(quick(students, backbones / "llama", student_eval_tokens=512, student_num_workers=1))
    assert f"{student_dir(students)}: up to date" in capsys.readouterr().out
    assert contents(students) == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"student_lr": 2e-2}, "student_lr 0.01 -> 0.02"),
        ({"student_t_soft": 2}, "student_t_soft 3.0 -> 2.0"),
        ({"student_teachers": "llama"}, "student_teachers  -> llama"),
        ({"student_alpha": 0}, "student_alpha 0.7 -> 0.0"),
        ({"student_seed": 1}, "student_seed None -> 1"),
    ],
)
def test_other_settings_are_refused_by_name_and_a_finished_student_stays(
    changed: dict[str, Any],
    says: str,
    students: Path,
    backbones: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(students)
    capsys.readouterr()
    assert run_command(lambda: distill(quick(students, backbones / "llama", **changed))) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(part in message for part in (str(student_dir(students)), says, "STUDENT_OVERWRITE=1")), message
    assert contents(students) == before


def test_another_table_is_refused_too_and_overwriting_replaces_the_student(
    students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(students, tmp_path / "root")

    def reverse_first_teacher(columns: dict[str, list[object]]) -> None:
        names = [("logit_model_a", "logit_tie"), ("p_model_a", "p_tie")]
        for one, two in names:
            columns[one], columns[two] = columns[two], columns[one]

    change_table(table_path(root), reverse_first_teacher)
    before = contents(root)
    settings = quick(root, backbones / "llama")
    assert run_command(lambda: distill(settings)) == 2
    assert "other oof_table" in capsys.readouterr().err
    assert contents(root) == before
    distill(settings | {"student_overwrite": True})
    out = capsys.readouterr().out
    assert "note: replaces the one that is there (other oof_table)" in out
    assert results(student_dir(root)) != results(student_dir(students))
    distill(settings)
    assert f"{student_dir(root)}: up to date" in capsys.readouterr().out


@pytest.mark.parametrize("again", ["student_overwrite", "force"])
def test_a_finished_student_is_trained_again_on_demand_and_comes_out_the_same(
    again: str, students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(students, tmp_path / "root")
    inode = (student_dir(root) / ADAPTER).stat().st_ino
    capsys.readouterr()
    distill(quick(root, backbones / "llama") | {again: True})
    assert ": trained in" in capsys.readouterr().out
    assert (student_dir(root) / ADAPTER).stat().st_ino != inode
    assert results(student_dir(root)) == results(student_dir(students))


@pytest.mark.parametrize("lost", [ADAPTER, "tokenizer.json"])
def test_a_student_that_has_lost_a_file_is_trained_again(
    lost: str, students: Path, backbones: Path, tmp_path: Path
) -> None:
    root = copy_of(students, tmp_path / "root")
    (student_dir(root) / lost).unlink()
    distill(quick(root, backbones / "llama"))
    assert results(student_dir(root)) == results(student_dir(students))
    assert (student_dir(root) / lost).is_file()


def test_a_student_whose_replacement_was_killed_between_two_renames_is_found(
    students: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(students, tmp_path / "root")
    final = student_dir(root)
    shutil.move(final, final.with_name(f".{final.name}.replaced"))
    capsys.readouterr()
    distill(quick(root, backbones / "llama"))
    assert f"{final}: up to date" in capsys.readouterr().out
    assert results(final) == results(student_dir(students))
    assert_same_weights(final / ADAPTER, student_dir(students) / ADAPTER)
