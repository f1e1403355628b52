"""Short runs of steps 1 to 3 for tests, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from arena_distill.data import fold_stage
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.runtime.settings import StageSettings, parse_settings
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.post_pretrain_stage import post_pretrain_all
from arena_distill.training.teacher_settings import TeacherSettings
from arena_distill.training.teacher_stage import train_teachers
from tests.conftest import REPOSITORY, SAMPLE

EXTRA = SAMPLE / "ultrafeedback.csv"
FOLDS = 3
NAME = "tiny"

Settings = TypeVar("Settings", bound=StageSettings)


def flags(**settings: object) -> list[str]:
    """The command line for some settings, given by field name."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return words


def _parsed(cls: type[Settings], settings: Mapping[str, object]) -> Settings:
    return parse_settings(cls, flags(**settings), program="test", description="")


def step1(**settings: object) -> None:
    """What ``python scripts/post_pretrain.py`` does, without a new interpreter."""
    post_pretrain_all(_parsed(PostPretrainSettings, settings))


def step2(**settings: object) -> None:
    """What ``python scripts/make_folds.py`` does, without a new interpreter."""
    fold_stage.run(_parsed(FoldSettings, settings))


def step3(**settings: object) -> None:
    """What ``python scripts/train_teachers.py`` does, without a new interpreter."""
    train_teachers(_parsed(TeacherSettings, settings))


def quick_step1(ut_data: Path, base: Path, output: Path) -> dict[str, object]:
    """Three steps of a very small Llama on a few rows, in full precision."""
    return {
        "run_stage": "llama",
        "llama_base": base,
        "ut_data": ut_data,
        "output_dir": output,
        "postpre_subset_size": 40,
        "postpre_max_steps": 3,
        "postpre_lr": 1e-2,
        "postpre_maxlen": 64,
        "postpre_per_device_bs": 4,
        "postpre_grad_accum": 2,
        "postpre_lora_r": 4,
        "postpre_bf16": False,
        "postpre_quant": "none",
    }


def quick_step3(train_csv: Path, base: Path, output: Path) -> dict[str, object]:
    """Three steps of one very small teacher on a few rows, in full precision; its folds are made by ``step2``."""
    return {
        "train_csv": train_csv,
        "n_folds": FOLDS,
        "output_dir": output,
        "llama_ft_base": base,
        "llama_name": NAME,
        "skip_qwen": True,
        "teacher_folds": "1",
        "teacher_max_steps": 3,
        "teacher_lr": 1e-2,
        "teacher_maxlen": 64,
        "teacher_per_device_bs": 4,
        "teacher_grad_accum": 2,
        "teacher_lora_r": 4,
        "teacher_bf16": False,
        "teacher_quant": "none",
        "teacher_merge": "0",
    }


def adapter_of(output: Path, fold: int = 1) -> Path:
    """Where step 3 puts an adapter of ``quick_step3``."""
    return output / "model_save" / f"{NAME}_fold_{fold}_lora"


def merged_of(output: Path, fold: int = 1) -> Path:
    """Where step 3 puts a whole model of ``quick_step3``."""
    return output / "model_save" / f"{NAME}_fold_{fold}"


def manifest_of(directory: Path) -> dict[str, Any]:
    """What the stage wrote down about its output."""
    document: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return document


def start(
    script: str,
    *,
    environment: Mapping[str, str] | None = None,
    processes: int = 1,
    new_session: bool = False,
    **settings: object,
) -> subprocess.Popen[str]:
    """``python scripts/SCRIPT …`` in a process of its own, or several by torchrun; both outputs in one pipe."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(REPOSITORY / "scripts" / script), *flags(**settings)]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        start_new_session=new_session,
    )


def run_script(
    script: str, *, environment: Mapping[str, str] | None = None, processes: int = 1, **settings: object
) -> tuple[int, str]:
    """The exit code of ``start`` and all that it printed."""
    process = start(script, environment=environment, processes=processes, **settings)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def contents(directory: Path) -> dict[str, bytes]:
    """Every file's bytes by its path, but for locks."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
