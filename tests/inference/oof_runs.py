"""Short runs of steps 2, 3 and 4 for tests, in this process or in one of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data import fold_stage
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.folds import Folds, load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.oof_stage import infer_teachers
from arena_distill.runtime.settings import StageSettings, parse_settings
from arena_distill.training.teacher_settings import TeacherSettings
from arena_distill.training.teacher_stage import train_teachers
from tests.conftest import REPOSITORY, SAMPLE

T = TypeVar("T", bound=StageSettings)

EXTRA = SAMPLE / "ultrafeedback.csv"
N_FOLDS = 3
FAMILIES = ("llama", "qwen2")
LOGITS = ("logit_model_a", "logit_model_b", "logit_tie")
PROBABILITIES = ("p_model_a", "p_model_b", "p_tie")

QUICK_TEACHER = {
    "teacher_max_steps": 3,
    "teacher_lr": 0.02,  # so large that an adapter left out, or of another fold, shows
    "teacher_per_device_bs": 8,
    "teacher_grad_accum": 1,
    "teacher_maxlen": 64,
    "teacher_lora_r": 4,
    "teacher_lora_alpha": 8,
    "teacher_bf16": False,
    "teacher_gradient_checkpointing": False,
    "teacher_save_steps": 1000,
    "teacher_merge": 0,
}


def arguments(root: Path, **settings: object) -> list[str]:
    """The command line of a stage whose data and outputs lie under ``root``; settings by field name."""
    given = {"train_csv": root / "train.csv", "output_dir": root, "n_folds": N_FOLDS} | settings
    words = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return words


def _parsed(cls: type[T], root: Path, settings: dict[str, object]) -> T:
    return parse_settings(cls, arguments(root, **settings), program="x", description="")


def make_folds(root: Path, **settings: object) -> None:
    """Step 2."""
    fold_stage.run(_parsed(FoldSettings, root, settings))


def train(root: Path, **settings: object) -> None:
    """Step 3 at its quickest."""
    train_teachers(_parsed(TeacherSettings, root, QUICK_TEACHER | {"extra_data": EXTRA} | settings))


def infer(root: Path, **settings: object) -> None:
    """Step 4; without the baselines, its slowest part at this size."""
    infer_teachers(_parsed(OofSettings, root, {"infer_baselines": False} | settings))


def start_infer(root: Path, **settings: object) -> subprocess.Popen[str]:
    """Step 4 in a process of its own."""
    words = arguments(root, **{"infer_baselines": False, **settings})
    command = [sys.executable, str(REPOSITORY / "scripts" / "infer_teachers.py"), *words]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ))


def copy_of(root: Path, into: Path, *, logits: bool) -> Path:
    """A copy of data, folds and teachers that a test may change; with the finished logits and table, or without."""
    left_out = shutil.ignore_patterns(".*", *([] if logits else ["teacher_logits"]))
    return Path(shutil.copytree(root, into, ignore=left_out))


def rows_of(root: Path) -> Rows:
    """All base rows."""
    return load_labelled(root / "train.csv").rows


def folds_path(root: Path) -> Path:
    """The folds file."""
    return root / "data" / "processed_data" / f"folds_{N_FOLDS}_seed42.json"


def folds_of(root: Path) -> Folds:
    """The folds."""
    return load_folds(folds_path(root))


def logits_dir(root: Path) -> Path:
    """Where step 4 writes."""
    return root / "model_save" / "teacher_logits"


def table_path(root: Path) -> Path:
    """The out-of-fold table."""
    return logits_dir(root) / "oof_probs.parquet"


def adapter(root: Path, family: str, fold: int) -> Path:
    """A teacher's adapter."""
    return root / "model_save" / f"{family}_fold_{fold}_lora"


def array(root: Path, family: str, fold: int, what: str = "logits") -> np.ndarray:
    """One of the NumPy files of a fold: ``logits``, ``probs`` or ``lasttok``."""
    return np.load(logits_dir(root) / f"{family}_fold_{fold}" / f"teacher_{what}_fold_{fold}.npy")


def family_columns(table: Path, family: str, columns: tuple[str, ...]) -> np.ndarray:
    """Some columns of one family in the file's order, ``[N, C]``; read by pyarrow alone."""
    rows = pq.read_table(table)
    rows = rows.filter(pa.compute.equal(rows["family"], family))
    return np.column_stack([rows[column].to_numpy() for column in columns])


def results(root: Path) -> dict[str, bytes]:
    """Every finished file of step 4 by its name, but for manifests, which hold times."""
    directory = logits_dir(root)
    files = (
        path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.suffix in (".npy", ".parquet")
    )
    return {str(file): (directory / file).read_bytes() for file in files if not str(file).startswith(".")}


@contextmanager
def set_aside(path: Path, spare: Path) -> Iterator[Path]:
    """Within the context ``path`` is gone or may be changed; afterwards it is as before."""
    saved = Path(shutil.copytree(path, spare))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(saved, path)
