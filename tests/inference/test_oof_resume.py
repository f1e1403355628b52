"""Step 4 in parts, after a kill, and again: always the same bytes, and nothing is scored twice."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_distill.inference import oof
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.runtime.errors import ArenaError
from tests.conftest import REPOSITORY
from tests.inference.oof_runs import (
    FAMILIES,
    N_FOLDS,
    arguments,
    array,
    copy_of,
    infer,
    logits_dir,
    results,
    start_infer,
    table_path,
)

ONE_BY_ONE = {"infer_batch_tokens": 16}  # fewer than any sequence has: every batch holds one
MARK = 1e6


def finished(root: Path) -> list[Path]:
    """Fold directories and table under their final names."""
    return sorted(path for path in logits_dir(root).glob("[!.]*") if "fold" in path.name or path.suffix == ".parquet")


def hidden(root: Path) -> list[Path]:
    """Working directories of unfinished folds."""
    return sorted(path for path in logits_dir(root).glob(".*") if path.is_dir())


# Shards


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_make_the_bytes_of_one_run(order: tuple[int, ...], scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    small = {"infer_batch_tokens": 512}  # several batches for each shard
    for shard in order[:-1]:
        infer(root, infer_train_shards=3, infer_train_shard_id=shard, **small)
        assert not finished(root), "a fold was put together before its last part"
    infer(root, infer_train_shards=3, infer_train_shard_id=order[-1], **small)
    whole = copy_of(scored, tmp_path / "whole", logits=False)
    infer(whole, **small)
    assert results(root) == results(whole)
    assert len(finished(root)) == N_FOLDS * len(FAMILIES) + 1
    assert not hidden(root)


def test_shards_at_the_same_time_make_the_bytes_of_one_run(scored: Path, tmp_path: Path) -> None:
    root, whole = (copy_of(scored, tmp_path / name, logits=False) for name in ("root", "whole"))
    options = {"infer_models": "llama", "infer_batch_tokens": 512}
    jobs = [start_infer(root, infer_train_shards=2, infer_train_shard_id=shard, **options) for shard in range(2)]
    outputs = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    infer(whole, **options)
    assert results(root) == results(whole)
    assert not hidden(root)


def test_a_job_without_batches_of_its_own_does_not_stumble_when_another_finishes_the_fold(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold of one batch, in two parts: the first part does it all while the second one is still tokenizing."""
    root = copy_of(scored, tmp_path / "root", logits=False)
    of_fold, options = oof.Work.of_fold, {"infer_models": "llama", "infer_folds": 0, "infer_train_shards": 2}

    def slowly(settings: OofSettings, *rest: object) -> oof.Work:
        if settings.infer_train_shard_id == 1:
            infer(root, infer_train_shard_id=0, **options)
        return of_fold(settings, *rest)

    monkeypatch.setattr(oof.Work, "of_fold", slowly)
    infer(root, infer_train_shard_id=1, **options)
    expected = {name: data for name, data in results(scored).items() if name.startswith("llama_fold_0")}
    assert results(root) == expected
    assert not hidden(root)


def test_a_shard_run_again_does_nothing_twice_and_completes_nothing(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    shard = {"infer_models": "llama", "infer_folds": 0, "infer_train_shards": 2, "infer_train_shard_id": 1}
    infer(root, **shard, **ONE_BY_ONE)
    part = _part(root)
    before = part.read_bytes()
    capsys.readouterr()
    infer(root, **shard, **ONE_BY_ONE)
    assert "part 1 of 2 is done; others are still to come" in capsys.readouterr().out
    assert part.read_bytes() == before
    assert not finished(root)


def test_more_shards_than_batches(scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    for shard in range(4):
        infer(root, infer_models="llama", infer_train_shards=4, infer_train_shard_id=shard, infer_batch_tokens=10**6)
    whole = copy_of(scored, tmp_path / "whole", logits=False)
    infer(whole, infer_models="llama", infer_batch_tokens=10**6)
    assert results(root) == results(whole)


# Kills


def _part(root: Path) -> Path:
    (part,) = logits_dir(root).glob(".*.partial-*/shard_*.npy")
    return part


def _done(part: Path) -> np.ndarray:
    """Which sequences have all their values, bool ``[S]``."""
    return np.isfinite(np.load(part, mmap_mode="r")).all(axis=1)


def _wait_for_some(root: Path, while_true: Callable[[], bool]) -> tuple[Path, int]:
    """Return once an unfinished fold has a few sequences scored and most of them to come: its part, and how many."""
    while while_true():
        for part in logits_dir(root).glob(".*.partial-*/shard_*.npy"):
            try:
                done = _done(part)
            except (OSError, ValueError):  # finished and gone, or not yet whole
                continue
            if 5 <= done.sum() < len(done) // 2:
                return part, int(done.sum())
    raise AssertionError("the run ended before it could be stopped")


def _killed(root: Path) -> tuple[Path, int]:
    """A run killed in the middle of a fold: its part, and how many sequences were seen in it before the kill."""
    process = start_infer(root, **ONE_BY_ONE)
    part, seen = _wait_for_some(root, while_true=lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return part, seen


def test_after_sigkill_the_same_command_scores_only_what_is_missing_and_ends_with_the_same_bytes(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, root = (copy_of(scored, tmp_path / name, logits=False) for name in ("whole", "root"))
    infer(whole, **ONE_BY_ONE)
    part, seen = _killed(root)
    done = _done(part)
    assert seen <= done.sum() < len(done), "what was written is there after the kill"
    _check_that_the_rest_is_scored(root, whole, part, capsys, tmp_path, **ONE_BY_ONE)


def test_after_ctrl_c_the_same_command_goes_on_with_last_token_states_too(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, root = (copy_of(scored, tmp_path / name, logits=False) for name in ("whole", "root"))
    options = {**ONE_BY_ONE, "infer_save_lasttok": True}
    infer(whole, **options)

    forward, passes = ClassifierJudge._forward, itertools.count(1)

    def press_at_the_tenth(judge: ClassifierJudge, *rest: Any) -> np.ndarray:
        if next(passes) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(judge, *rest)

    # A process started in the background ignores the signal, unless it is told not to.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(ClassifierJudge, "_forward", press_at_the_tenth)
            infer(root, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; the same command goes on where it stopped" in capsys.readouterr().out
    part = _part(root)
    assert 5 <= _done(part).sum() < len(_done(part))
    _check_that_the_rest_is_scored(root, whole, part, capsys, tmp_path, **options)


def _check_that_the_rest_is_scored(
    root: Path, whole: Path, part: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, **options: object
) -> None:
    done = _done(part)
    name = part.parent.name.removeprefix(".").partition(".")[0]
    assert not (logits_dir(root) / name).exists()
    before = {path: path.stat().st_mtime_ns for path in finished(root)}
    marked = _marked_copy(root, part, tmp_path / "marked")
    capsys.readouterr()
    infer(root, **options)
    printed = capsys.readouterr().out
    assert f"{logits_dir(root) / name}: going on, {done.sum()} of {len(done)} batches are there" in printed
    assert printed.count("going on") == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished fold was written again"
    assert results(root) == results(whole)
    assert not hidden(root)

    infer(marked, **options)
    family, _, fold = name.rpartition("_fold_")
    assert (array(marked, family, int(fold)) > MARK / 4).any(axis=1).sum() == 1, "a finished batch was scored again"


def _marked_copy(root: Path, part: Path, into: Path) -> Path:
    """With a number that no teacher gives as one logit of one order of a finished row."""
    shutil.copytree(root, into, ignore=shutil.ignore_patterns("*.lock"))
    copy = into / part.relative_to(root)
    values = np.load(copy)
    values[np.flatnonzero(_done(part))[-1], 0] = MARK
    np.save(copy, values)
    return into


@pytest.mark.parametrize("size", [0, 50, 1000])
def test_a_part_cut_off_by_a_crash_is_made_anew(size: int, scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    shard = {"infer_models": "llama", "infer_train_shards": 2, "infer_batch_tokens": 512}
    infer(root, **shard, infer_train_shard_id=0)
    for part in logits_dir(root).glob(".*.partial-*/shard_0_*.npy"):
        os.truncate(part, size)
    infer(root, **shard, infer_train_shard_id=1)  # meets the other's torn part when it looks whether all is there
    assert not finished(root)
    infer(root, **shard, infer_train_shard_id=0)
    whole = copy_of(scored, tmp_path / "whole", logits=False)
    infer(whole, infer_models="llama", infer_batch_tokens=512)
    assert results(root) == results(whole)


# Again


def test_a_second_run_says_up_to_date_without_importing_torch(scored: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in logits_dir(scored).rglob("*") if path.suffix != ".lock"}
    script = (
        "import sys; sys.path.insert(0, 'scripts'); sys.argv[0] = 'x'\nimport infer_teachers\n"
        "infer_teachers.main()\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *arguments(scored)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    for family in FAMILIES:
        for fold in range(N_FOLDS):
            assert any(line.startswith(f"{logits_dir(scored) / f'{family}_fold_{fold}'}: up to date") for line in lines)
    assert lines[-1].startswith(f"{table_path(scored)}: up to date; out-of-fold log loss: llama ")
    assert heavy == "[]"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_force_regen_scores_again_and_makes_the_same_bytes(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=True)
    before = {path: path.stat().st_ino for path in logits_dir(root).rglob("*.npy")}
    infer(root, infer_force_regen=True)
    printed = capsys.readouterr().out
    assert printed.count(": scoring fold ") == N_FOLDS * len(FAMILIES)
    assert "up to date (" not in printed
    assert all(path.stat().st_ino != inode for path, inode in before.items())
    assert results(root) == results(scored)


def test_force_regen_does_not_believe_what_an_earlier_run_left_unfinished(scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    options = {"infer_models": "llama", "infer_folds": 0, "infer_batch_tokens": 512}
    infer(root, infer_train_shards=2, infer_train_shard_id=0, **options)
    part = _part(root)
    values = np.load(part)
    values[np.isfinite(values)] = 7.0
    np.save(part, values)
    infer(root, infer_force_regen=True, **options)
    assert not (array(root, "llama", 0) == 7.0).any()


def test_a_missing_array_is_made_again(scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=True)
    (logits_dir(root) / "llama_fold_1" / "teacher_logits_fold_1.npy").unlink()
    infer(root)
    assert results(root) == results(scored)


def test_two_jobs_do_not_score_one_part(scored: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    root = copy_of(scored, tmp_path / "root", logits=False)
    shard = {"infer_models": "llama", "infer_train_shards": 2, "infer_train_shard_id": 0, "infer_batch_tokens": 512}
    infer(root, infer_folds=0, **shard)
    lock = logits_dir(root) / ".llama_fold_0.shard_0_of_2.lock"
    with FileLock(lock), pytest.raises(ArenaError, match="another job"):
        infer(root, infer_folds=0, **shard)
