"""A token that is in the environment stays there: no file and no line of any step holds it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.training.teacher_runs import EXTRA, FOLDS, flags, quick_step1, quick_step3


@pytest.fixture
def tokens() -> dict[str, str]:
    """Made up at run time: nothing that looks like a token stands in this file."""
    return {name: "hf" + "_" + secrets.token_hex(17) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}


def _run(script: str, cwd: Path, environment: dict[str, str], settings: dict[str, object]) -> tuple[int, bytes]:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / script), *flags(**settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def _holders(directory: Path, values: dict[str, str]) -> list[str]:
    """Files whose bytes or name contain one of the values."""
    return [
        str(path)
        for path in directory.rglob("*")
        for value in values.values()
        if value in path.name or (path.is_file() and value.encode() in path.read_bytes())
    ]


@pytest.mark.slow
def test_no_file_and_no_line_of_steps_1_to_3_holds_a_token(
    tokens: dict[str, str], backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    base, output = backbones / "llama", tmp_path / "out"
    one = quick_step1(EXTRA, base, output) | {"postpre_max_steps": 1}
    three = quick_step3(small_train_csv, base, output) | {"teacher_max_steps": 1, "teacher_merge": "1"}
    steps: list[tuple[str, dict[str, object], int]] = [
        ("post_pretrain.py", one, 0),
        ("make_folds.py", {"train_csv": small_train_csv, "n_folds": FOLDS, "output_dir": output}, 0),
        ("train_teachers.py", three, 0),
        ("post_pretrain.py", one | {"llama_base": "nobody/no-such-model"}, 3),
        ("train_teachers.py", three | {"llama_ft_base": "nobody/no-such-model"}, 3),
        ("train_teachers.py", three | {"llama_ft_base": "nobody/no-such-model", "teacher_head": "seq_cls"}, 3),
    ]
    for script, settings, expected in steps:
        code, printed = _run(script, tmp_path, tokens, settings)
        assert code == expected, printed.decode()
        assert not [name for name, value in tokens.items() if value.encode() in printed]
    assert len(list(output.rglob("manifest.json"))) == 5, "not all steps have run"
    assert _holders(tmp_path, tokens) == []
    assert _holders(REPOSITORY / "logs", tokens) == []


@pytest.mark.slow
def test_a_token_that_a_user_puts_where_it_does_not_belong_is_blotted_out(
    tokens: dict[str, str], backbones: Path, tmp_path: Path
) -> None:
    """As part of a model's name it comes back in the error, which goes to the job's log."""
    settings = quick_step1(EXTRA, backbones / "llama", tmp_path / "out")
    code, printed = _run("post_pretrain.py", tmp_path, tokens, settings | {"llama_base": f"user/{tokens['HF_TOKEN']}"})
    assert code == 3
    assert tokens["HF_TOKEN"].encode() not in printed and b"<HF_TOKEN>" in printed
    profile = tmp_path / "mine.env"
    profile.write_text(f"HF_TOKEN={tokens['HF_TOKEN']}\n")
    code, printed = _run("post_pretrain.py", tmp_path, {"PROFILE": str(profile)}, settings)
    assert code == 2
    assert tokens["HF_TOKEN"].encode() not in printed and b"HF_TOKEN" in printed
