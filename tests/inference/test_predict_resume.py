"""Step 8 after a kill, and again: always the same bytes, nothing is scored twice, and files that belong together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arena_distill.inference import predict as predict_module
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.runtime.errors import ArenaError
from tests.conftest import REPOSITORY, SAMPLE
from tests.inference.predict_runs import (
    arguments,
    calibrate,
    changed_csv,
    hidden,
    infer,
    logits_of,
    make_student,
    manifest,
    results,
    sign,
    start_infer,
)

ONE_BY_ONE = {"predict_batch_tokens": 1, "tta_lengths": "64,160"}
MARK = 1e6


def _done(part: Path) -> np.ndarray:
    """Which sequences are finished, bool ``[S]``."""
    return np.isfinite(np.load(part, mmap_mode="r")).all(axis=1)


def _part(root: Path) -> Path:
    (part,) = root.glob(".out.csv.partial-*/shard_*.npy")
    return part


@pytest.fixture(scope="module")
def settings(students: Path) -> dict[str, object]:
    """Of a run that is long enough to be killed in the middle."""
    return {"model_dir": students / "llama_lora", "test_csv": SAMPLE / "test.csv", "labels_csv": "none"} | ONE_BY_ONE


@pytest.fixture(scope="module")
def left_by_kill(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, object]) -> Path:
    """What a run left that was killed when a few sequences were done and most were to come; not to be changed."""
    root = tmp_path_factory.mktemp("killed") / "root"
    root.mkdir()
    process = start_infer(root, **settings)
    while process.poll() is None:
        for part in root.glob(".out.csv.partial-*/shard_*.npy"):
            if 5 <= _done(part).sum() < len(_done(part)) // 2:
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                return root
    raise AssertionError(f"the run ended before it could be stopped: {process.communicate()[0]}")


@pytest.fixture
def killed(left_by_kill: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(left_by_kill, tmp_path / "killed", ignore=shutil.ignore_patterns("*.lock")))


def _falsify(part: Path) -> None:
    """Put values into what is finished that no model gives."""
    values = np.load(part)
    values[np.isfinite(values)] = 7.0
    np.save(part, values)


def test_after_sigkill_the_same_command_scores_only_what_is_missing_and_ends_with_the_same_bytes(
    settings: dict[str, object], killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _done(_part(killed))
    assert not list(killed.glob("out*")), "something was published by a run that did not finish"
    marked = Path(shutil.copytree(killed, tmp_path / "marked"))
    values = np.load(_part(marked))
    values[np.flatnonzero(done)[-1], 0] = MARK
    np.save(_part(marked), values)
    (tmp_path / "whole").mkdir()
    infer(tmp_path / "whole", **settings)
    capsys.readouterr()
    infer(killed, **settings)
    assert f"going on, {done.sum()} of {len(done):,} batches are there" in capsys.readouterr().out
    assert results(killed) == results(tmp_path / "whole")
    assert len(results(killed)) == 2
    assert not hidden(killed)
    infer(marked, **settings)
    assert (np.abs(logits_of(marked / "out.csv")) == MARK).any(), "a finished sequence was scored again"


def test_the_speed_in_the_manifest_covers_what_was_done_before_the_kill(
    settings: dict[str, object], killed: Path
) -> None:
    values = np.load(_part(killed))
    values[np.flatnonzero(_done(_part(killed)))[-1], -1] = 1000.0  # seconds
    np.save(_part(killed), values)
    speed = manifest(infer(killed, **settings))["speed"]
    assert speed["seconds"] > 1000


@pytest.mark.parametrize("published", [0, 1, 2], ids=["none", "the logits", "logits and submission"])
def test_a_kill_between_the_files_leaves_no_manifest_over_files_that_do_not_belong_together(
    published: int, students: Path, small_test_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model_dir": students / "bert_plain", "test_csv": small_test_csv}
    whole = tmp_path / "whole"
    whole.mkdir()
    infer(whole, **settings, tta_lengths=64)
    infer(tmp_path, **settings)
    old = results(tmp_path)
    replace, moved = Path.replace, []

    def stop_after_some(path: Path, target: Path) -> Path:
        if path.parent.name == "finished" and not path.name.startswith("."):
            if len(moved) == published:
                raise KeyboardInterrupt
            moved.append(target)
        return replace(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", stop_after_some)
        infer(tmp_path, **settings, tta_lengths=64)
    fresh = results(whole)
    assert sum(results(tmp_path)[name] == fresh[name] != old[name] for name in fresh) == published
    assert not (tmp_path / "out.manifest.json").exists()

    def no_model(*_: object, **__: object) -> ClassifierJudge:
        raise AssertionError("all scores were there, and a model was loaded")

    monkeypatch.setattr(predict_module, "load_judge", no_model)
    infer(tmp_path, **settings, tta_lengths=64)
    assert results(tmp_path) == fresh
    assert not hidden(tmp_path)


def test_an_older_submission_stays_whole_until_the_new_one_is(
    students: Path, small_test_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model_dir": students / "bert_plain", "test_csv": small_test_csv}
    infer(tmp_path, **settings)
    old, described = results(tmp_path), manifest(tmp_path / "out.csv")
    forward, passes = ClassifierJudge._forward, []

    def press_at_the_tenth(judge: ClassifierJudge, *rest: object) -> np.ndarray:
        passes.append(1)
        if len(passes) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(judge, *rest)  # type: ignore[arg-type]

    # A process started in the background ignores the signal, unless it is told not to.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(ClassifierJudge, "_forward", press_at_the_tenth)
            infer(tmp_path, **settings, **ONE_BY_ONE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert results(tmp_path) == old
    assert manifest(tmp_path / "out.csv") == described
    infer(tmp_path, **settings, **ONE_BY_ONE)
    assert results(tmp_path) != old


# Again


def test_a_second_run_says_up_to_date_without_importing_torch(
    students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    settings = {"model_dir": students / "llama_merged", "test_csv": small_test_csv}
    head = students / "llama_merged" / "classifier_head.safetensors"
    infer(tmp_path, **settings, head_path=head)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out*")}
    script = (
        "import sys; sys.path.insert(0, 'scripts'); sys.argv[0] = 'x'\nimport student_gptq_infer\n"
        "student_gptq_infer.main()\nprint(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *arguments(tmp_path, **settings, head_path=head)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path / 'out.csv'}: up to date (FORCE=1 predicts again)", "[]"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _cut_the_logits(root: Path, student: Path, test: Path) -> None:
    os.truncate(root / "out.logits.parquet", 100)


def _edit_the_submission(root: Path, student: Path, test: Path) -> None:
    lines = (root / "out.csv").read_text("utf-8").splitlines()
    (root / "out.csv").write_text("\n".join([*lines[:2], lines[1], *lines[3:], ""]), "utf-8")


def _change_the_rows(root: Path, student: Path, test: Path) -> None:
    changed_csv(test, test, lambda lines: lines[0].update(prompt='["another"]'))


def _calibrate_again(root: Path, student: Path, test: Path) -> None:
    calibrate(student, 2.5)


def _train_again(root: Path, student: Path, test: Path) -> None:
    backbone = json.loads((student / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    shutil.rmtree(student)
    make_student(student, Path(backbone), "lora", seed=7)


def _change_the_text_format(root: Path, student: Path, test: Path) -> None:
    layout = student / "text_format.json"
    document = json.loads(layout.read_text("utf-8"))
    document["pieces"][3] = document["pieces"][3][:-1]
    layout.write_text(json.dumps(document), "utf-8")
    sign(student)


@pytest.mark.parametrize(
    "change",
    [_cut_the_logits, _edit_the_submission, _change_the_rows, _calibrate_again, _train_again, _change_the_text_format],
)
def test_what_changed_is_noticed_and_predicted_again(
    change: Callable[[Path, Path, Path], None], students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(students / "llama_lora", tmp_path / "student"))
    test = Path(shutil.copyfile(small_test_csv, tmp_path / "test.csv"))
    settings = {"model_dir": student, "test_csv": test}
    infer(tmp_path, **settings)
    first = results(tmp_path)
    change(tmp_path, student, test)
    infer(tmp_path, **settings)
    damaged_only = change in (_cut_the_logits, _edit_the_submission)
    assert (results(tmp_path) == first) == damaged_only


def test_force_predicts_again_and_does_not_believe_what_an_earlier_run_left(
    settings: dict[str, object], killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _falsify(_part(killed))
    infer(killed, **settings, force=True)
    assert not (logits_of(killed / "out.csv") == 7.0).any()
    first = results(killed)
    capsys.readouterr()
    infer(killed, **settings, force=True)
    assert "up to date" not in capsys.readouterr().out
    assert results(killed) == first


@pytest.mark.parametrize("other", [{"predict_batch_tokens": 2048}, {"tta_lengths": "160,64"}], ids=["batches", "views"])
def test_scores_of_other_batches_or_views_are_not_gone_on_with(
    other: dict[str, object], settings: dict[str, object], killed: Path
) -> None:
    _falsify(_part(killed))
    infer(killed, **settings | other)
    assert not (logits_of(killed / "out.csv") == 7.0).any()


def test_two_jobs_do_not_write_one_submission(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".out.csv.lock"), pytest.raises(ArenaError, match="another job"):
        infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv)
