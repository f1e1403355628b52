"""Outputs appear whole, know what made them, and are made by one job at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from arena_distill.runtime.artifacts import (
    fingerprint,
    is_up_to_date,
    locked,
    partial_directory,
    publish,
    read_manifest,
    recover,
    sha256_path,
    write_atomically,
    write_manifest,
)
from arena_distill.runtime.errors import ArenaError, InputError


def _finished(directory: Path, rate: float = 1.0) -> str:
    directory.mkdir()
    (directory / "weights.bin").write_bytes(b"abc")
    write_manifest(directory, stage="toy", settings={"rate": rate}, inputs={"data": "d1"}, started=time.time())
    return fingerprint({"rate": rate}, {"data": "d1"})


def test_up_to_date_only_with_equal_settings_equal_inputs_and_all_files(tmp_path: Path) -> None:
    wanted = _finished(tmp_path / "out")
    assert is_up_to_date(tmp_path / "out", wanted)
    assert not is_up_to_date(tmp_path / "out", fingerprint({"rate": 2.0}, {"data": "d1"}))
    assert not is_up_to_date(tmp_path / "out", fingerprint({"rate": 1.0}, {"data": "d2"}))
    (tmp_path / "out" / "weights.bin").unlink()
    assert not is_up_to_date(tmp_path / "out", wanted)


def test_no_manifest_means_not_up_to_date(tmp_path: Path) -> None:
    assert not is_up_to_date(tmp_path, "x")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 99}', "{}"])
def test_a_broken_or_newer_manifest_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "new \ud800")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_publish_replaces_the_old_directory_whole(tmp_path: Path) -> None:
    final = tmp_path / "model"
    _finished(final)
    partial = partial_directory(final)
    partial.mkdir()
    (partial / "new.bin").write_bytes(b"new")
    publish(partial, final)
    assert sorted(path.name for path in final.iterdir()) == ["new.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_kill_between_the_two_renames_of_publish_loses_nothing(tmp_path: Path) -> None:
    final = tmp_path / "model"
    _finished(final)
    final.rename(tmp_path / ".model.replaced")
    recover(final)
    assert (final / "weights.bin").read_bytes() == b"abc"


def test_directory_hash_sees_names_and_contents_but_not_the_manifest(tmp_path: Path) -> None:
    _finished(tmp_path / "out")
    before = sha256_path(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("changed")
    assert sha256_path(tmp_path / "out") == before
    (tmp_path / "out" / "weights.bin").rename(tmp_path / "out" / "other.bin")
    assert sha256_path(tmp_path / "out") != before


def test_the_lock_is_held_against_another_process_and_released_when_it_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from arena_distill.runtime.artifacts import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ArenaError, match="another job"), locked(tmp_path / "out"):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path / "out"):
        pass


def test_an_output_behind_a_link_is_replaced_where_it_is(tmp_path: Path) -> None:
    """A user keeps models on a larger disk and links to them."""
    large = tmp_path / "large" / "model"
    large.mkdir(parents=True)
    link = tmp_path / "model"
    link.symlink_to(large)
    for text in ("first", "second"):
        partial = partial_directory(link)
        assert partial.parent == large.parent
        partial.mkdir()
        (partial / "weights").write_text(text)
        publish(partial, link)
        assert link.is_symlink() and (large / "weights").read_text() == text
    assert sorted(path.name for path in large.parent.iterdir()) == ["model"]
