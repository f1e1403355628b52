"""A run that is small enough for a test: its profile, and ``pipeline.sh`` as a user calls it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY, SAMPLE


def write_profile(path: Path, out: Path, backbones: Path, train: Path, test: Path) -> Path:
    """Every setting that a run over two folds needs, with three steps of training in each stage."""
    settings = {
        "TRAIN_CSV": train,
        "TEST_CSV": test,
        "UT_DATA": SAMPLE / "ultrafeedback_ties.csv",
        "EXTRA_DATA": "none",
        "OUTPUT_DIR": out,
        "N_FOLDS": 2,
        "RUN_STAGE": "llama",
        "LLAMA_BASE": backbones / "llama",
        "LLAMA_NAME": "small",
        "SKIP_QWEN": 1,
        "STUDENT_MODEL_NAME": backbones / "llama",
        "STUDENT_NAME": "student",
        "INFER_BASELINES": 0,
        "TTA_LENGTHS": 64,
        "CPUS_PER_TASK": 1,
    }
    for prefix in ("POSTPRE", "TEACHER", "STUDENT"):
        for name, value in {"MAXLEN": 64, "PER_DEVICE_BS": 8, "GRAD_ACCUM": 1, "BF16": 0, "MAX_STEPS": 3}.items():
            settings[f"{prefix}_{name}"] = value
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), "utf-8")
    return path


def pipeline(*flags: str, cwd: Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """``./pipeline.sh`` from another directory, with these variables."""
    command = ["bash", str(REPOSITORY / "pipeline.sh"), *flags]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, timeout=600)


def tree(directory: Path) -> dict[Path, int]:
    """Every file and directory with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
