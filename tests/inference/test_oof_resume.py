"""Step 4 in parts, after a kill, and again: always the same bytes, and nothing is scored twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arena_distill.runtime.errors import ArenaError
from tests.conftest import REPOSITORY
from tests.inference.oof_runs import (
    FAMILIES,
    N_FOLDS,
    arguments,
    array,
    copy_of,
    folds_of,
    infer,
    logits_dir,
    results,
    start_infer,
    table_path,
)

ONE_BY_ONE = {"infer_batch_tokens": 16}  # fewer than any sequence has: every batch holds one


def finished(root: Path) -> list[Path]:
    """Fold directories and table under their final names."""
    return sorted(path for path in logits_dir(root).glob("[!.]*") if "fold" in path.name or path.suffix == ".parquet")


def hidden(root: Path) -> list[Path]:
    """Working directories of unfinished folds."""
    return sorted(path for path in logits_dir(root).glob(".*") if path.is_dir())


# Shards


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
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
    root = copy_of(scored, tmp_path / "root", logits=False)
    options = {"infer_models": "llama", "infer_train_shards": 3}
    jobs = [start_infer(root, infer_train_shard_id=shard, **options) for shard in range(3)]
    outputs = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], outputs
    assert sum(": valid, 160 rows" in output for output in outputs) == 1, outputs
    expected = {name: data for name, data in results(scored).items() if name.startswith("llama")}
    assert {name: data for name, data in results(root).items() if name.startswith("llama")} == expected
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
    batches = len(np.load(part)) // 2
    assert f"going on, {batches} of {batches} batches are there" in capsys.readouterr().out
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


def _killed(root: Path, **settings: object) -> tuple[Path, int]:
    """A run killed in the middle of a fold: its part, and how many sequences were seen in it before the kill."""
    process = start_infer(root, **ONE_BY_ONE, **settings)
    seen = 0
    while True:
        assert process.poll() is None, process.stdout and process.stdout.read()
        for part in logits_dir(root).glob(".*.partial-*/shard_*.npy"):
            try:
                done = _done(part)
            except (OSError, ValueError):  # finished, or not yet whole
                continue
            if 5 <= done.sum() < len(done) // 2:
                seen = int(done.sum())
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                assert not _done(part).all(), "the fold ended before it was killed"
                return part, seen


@pytest.mark.parametrize("states", [False, True], ids=["logits", "and last-token states"])
def test_after_sigkill_the_same_command_scores_only_what_is_missing_and_ends_with_the_same_bytes(
    states: bool, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, root = (copy_of(scored, tmp_path / name, logits=False) for name in ("whole", "root"))
    options = {"infer_save_lasttok": states}
    infer(whole, **ONE_BY_ONE, **options)
    part, seen = _killed(root, **options)
    done = _done(part)
    assert seen <= done.sum() < len(done), "what was written is there after the kill"
    before = {path: path.stat().st_mtime_ns for path in finished(root)}
    name = part.parent.name.removeprefix(".").partition(".")[0]
    assert not (logits_dir(root) / name).exists()
    other = copy_of_all(root, tmp_path / "other")
    capsys.readouterr()
    infer(root, **ONE_BY_ONE, **options)
    printed = capsys.readouterr().out
    assert f"{logits_dir(root) / name}: going on, {done.sum()} of {len(done)} batches are there" in printed
    assert printed.count("going on") == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished fold was written again"
    assert results(root) == results(whole)
    assert not hidden(root)

    _mark(other, part.name, done)
    infer(other, **ONE_BY_ONE, **options)
    fold = int(name[-1])
    marked = np.isclose(array(other, name.removesuffix(f"_fold_{fold}"), fold), MARK / 2, atol=MARK / 4).any(axis=1)
    assert marked.sum() == 1, "what was there before the kill was scored again"


MARK = 1000.0


def copy_of_all(root: Path, into: Path) -> Path:
    import shutil

    return Path(shutil.copytree(root, into, ignore=shutil.ignore_patterns("*.lock")))


def _mark(root: Path, name: str, done: np.ndarray) -> None:
    """Put a number that no teacher gives into one finished sequence."""
    (path,) = logits_dir(root).glob(f".*.partial-*/{name}")
    values = np.load(path)
    values[np.flatnonzero(done)[-1], 0] = MARK
    np.save(path, values)


@pytest.mark.parametrize("size", [0, 50, 1000])
def test_a_part_cut_off_by_a_crash_is_made_anew(size: int, scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    shard = {"infer_models": "llama", "infer_train_shards": 2}
    infer(root, **shard, infer_train_shard_id=0)
    for part in logits_dir(root).glob(".*.partial-*/shard_0_*.npy"):
        os.truncate(part, size)
    infer(root, **shard, infer_train_shard_id=1)  # meets the other's torn part when it looks whether all is there
    assert not finished(root)
    infer(root, **shard, infer_train_shard_id=0)
    expected = {name: data for name, data in results(scored).items() if name.startswith("llama")}
    assert {name: data for name, data in results(root).items() if name.startswith("llama")} == expected


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
    shard = {"infer_models": "llama", "infer_folds": 0, "infer_train_shards": 2, "infer_train_shard_id": 0}
    infer(root, **shard)
    part = _part(root)
    values = np.load(part)
    values[np.isfinite(values)] = 7.0
    np.save(part, values)
    infer(root, infer_models="llama", infer_force_regen=True)
    fold_0 = folds_of(root).fold == 0
    np.testing.assert_array_equal(array(root, "llama", 0)[fold_0], array(scored, "llama", 0)[fold_0])


def test_a_missing_array_is_made_again(scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=True)
    (logits_dir(root) / "llama_fold_1" / "teacher_logits_fold_1.npy").unlink()
    infer(root)
    assert results(root) == results(scored)


def test_two_jobs_do_not_score_one_part(scored: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_models="llama", infer_folds=0, infer_train_shards=2, infer_train_shard_id=0)
    part = _part(root)
    with FileLock(part.with_name(f".{part.name}.lock")), pytest.raises(ArenaError, match="another job"):
        infer(root, infer_models="llama", infer_folds=0, infer_train_shards=2, infer_train_shard_id=0)
