"""Tiny bases are made once, also where several runs that need them begin at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SAMPLE


@pytest.mark.slow
def test_two_who_begin_at_once_make_one_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_tiny_models.py"), "--families", "llama"]
    command += ["--texts", str(SAMPLE / "test.csv"), "--pretrain-epochs", "1", "--out-dir", str(tmp_path)]
    command += ["--hidden", "16", "--heads", "2", "--layers", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sum("parameters" in text for text in printed) == 1, printed
    assert sum("made by another job meanwhile" in text or "up to date" in text for text in printed) == 1, printed
    assert (tmp_path / "llama" / "manifest.json").is_file() and not list(tmp_path.glob(".*partial*"))
