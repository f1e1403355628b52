"""Short student runs for tests, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from arena_distill.runtime.settings import parse_settings
from arena_distill.training import student_modes
from arena_distill.training.student_settings import StudentSettings

REPOSITORY = Path(__file__).resolve().parents[2]


def settings_for(mode: str, **settings: object) -> StudentSettings:
    """The settings that ``python main.py --mode MODE --flag value …`` resolves to."""
    return parse_settings(StudentSettings, arguments(mode, **settings), program="main.py", description="")


def run_mode(mode: str, **settings: object) -> None:
    """What ``python main.py --mode MODE --flag value …`` does, without a new interpreter."""
    student_modes.run(settings_for(mode, **settings))


def arguments(mode: str, **settings: object) -> list[str]:
    """The command line for some settings, given by field name."""
    words = ["--mode", mode]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return words


def start(mode: str, **settings: object) -> subprocess.Popen[str]:
    """``python main.py …`` in a process of its own."""
    command = [sys.executable, str(REPOSITORY / "main.py"), *arguments(mode, **settings)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ))


def quick_settings(train_csv: Path, backbone: Path, model_dir: Path) -> dict[str, object]:
    """Two epochs of a very small model on a few rows."""
    return {
        "train_csv": train_csv,
        "student_model": backbone,
        "student_output_model_dir": model_dir,
        "student_epochs": 2,
        "student_max_length": 64,
        "student_learning_rate": 1e-3,
    }
