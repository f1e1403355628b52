"""Short runs of step 5 for tests, on folds and an out-of-fold table that are made in a second."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from arena_distill.data.folds import Folds, load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.oof_table import TABLE_SCHEMA, OofFamily, build_table, manifest_path
from arena_distill.runtime.artifacts import MANIFEST, sha256_file, write_manifest
from arena_distill.runtime.settings import parse_settings
from arena_distill.runtime.stages import INFER_TEACHER_LOGITS
from arena_distill.training.distill_data import DistillData, StudentRows
from arena_distill.training.distill_job import DistillJob, plan_students
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.distill_stage import distill_students
from arena_distill.training.soft_labels import SoftLabels
from tests.training.teacher_runs import EXTRA, flags, step2

N_FOLDS = 3
BASE_ROWS, EXTRA_ROWS = 160, 30
TEACHERS = {"llama": 1.5, "qwen2": 1.0}  # name -> how sure it is of the vote
NAME = "tiny"
SCRIPT = "distill_student.py"
ADAPTER = "adapter_model.safetensors"

Line = dict[str, str]
Columns = dict[str, list[Any]]


# Data, folds and table


def make_root(root: Path, train_csv: Path) -> Path:
    """Data, folds and a table under ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(train_csv, root / "train.csv")
    with (
        EXTRA.open(newline="", encoding="utf-8") as stream,
        (root / "extra.csv").open("w", newline="", encoding="utf-8") as out,
    ):
        csv.writer(out).writerows(islice(csv.reader(stream), EXTRA_ROWS + 1))
    make_folds(root)
    write_table(root)
    return root


def make_folds(root: Path, **settings: object) -> None:
    """Step 2."""
    own = {"train_csv": root / "train.csv", "n_folds": N_FOLDS, "output_dir": root, "extra_data": root / "extra.csv"}
    step2(**own | settings)


def rows_of(root: Path) -> Rows:
    """All base rows."""
    return load_labelled(root / "train.csv").rows


def folds_path(root: Path) -> Path:
    """The folds file."""
    return root / "data" / "processed_data" / f"folds_{N_FOLDS}_seed42.json"


def folds_of(root: Path) -> Folds:
    """The folds."""
    return load_folds(folds_path(root))


def fold_data(root: Path) -> Path:
    """Directory of the fold files."""
    return root / "data" / "fold_data"


def fold_csv(root: Path, fold: int, part: str) -> Path:
    """One of the fold files."""
    return fold_data(root) / f"fold_{fold}_{part}.csv"


def table_path(root: Path) -> Path:
    """The out-of-fold table."""
    return root / "model_save" / "teacher_logits" / "oof_probs.parquet"


def teacher_logits(rows: Rows) -> dict[str, np.ndarray]:
    """What made-up teachers say: the vote, more or less; float32 ``[N, 3]`` each."""
    said = {}
    for number, (name, sure) in enumerate(TEACHERS.items()):
        noise = np.random.default_rng(number).normal(size=(len(rows), 3))
        said[name] = (sure * targets(rows) + noise).astype(np.float32)
    return said


def write_table(root: Path, logits: Mapping[str, np.ndarray] | None = None) -> Path:
    """The table of ``logits`` (by default of ``teacher_logits``) with its manifest, as step 4 writes them."""
    rows = rows_of(root)
    families = {
        name: OofFamily(said, softmax(said), np.zeros(len(rows)))
        for name, said in (logits or teacher_logits(rows)).items()
    }
    table = table_path(root)
    table.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(build_table(families, rows, folds_of(root)), table)
    write_manifest(
        table,
        stage=INFER_TEACHER_LOGITS.name,
        settings={"families": sorted(families)},
        inputs={},
        started=time.time(),
        path=manifest_path(table),
    )
    return table


def copy_of(root: Path, into: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(root, into, ignore=shutil.ignore_patterns("*.lock")))


def change_table(table: Path, change: Callable[[Columns], object], *, sign: bool = True) -> None:
    """Change the table; with ``sign`` the manifest vouches for it, so that only the content can give it away."""
    columns = pq.read_table(table).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=TABLE_SCHEMA), table)
    if sign:
        _sign(manifest_path(table), table)


def change_fold_csv(path: Path, change: Callable[[list[Line]], object]) -> None:
    """Change the lines of a fold file, and make step 2's manifest vouch for it."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lines, names = list(reader), list(reader.fieldnames or ())
    change(lines)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    _sign(path.parent / MANIFEST, path)


def _sign(manifest: Path, file: Path) -> None:
    document = json.loads(manifest.read_text("utf-8"))
    assert file.name in document["outputs"]
    document["outputs"][file.name] = sha256_file(file)
    document["output_bytes"][file.name] = file.stat().st_size
    manifest.write_text(json.dumps(document), "utf-8")


# Runs


def quick(root: Path, base: Path, output: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Four steps of a very small student of fold 1, evaluated every second step, in full precision.

    With ``output`` the student goes there, and ``root`` with its data, folds and table stays as it is.
    """
    elsewhere = {
        "output_dir": output,
        "folds_json": folds_path(root),
        "folds_out_dir": fold_data(root),
        "infer_oof_table": table_path(root),
    }
    return {
        "train_csv": root / "train.csv",
        "output_dir": root,
        "n_folds": N_FOLDS,
        "student_model_name": base,
        "student_name": NAME,
        "student_folds": "1",
        "student_max_steps": 4,
        "student_save_steps": 2,
        "student_lr": 1e-2,
        "student_maxlen": 48,
        "student_per_device_bs": 4,
        "student_grad_accum": 2,
        "student_lora_r": 4,
        "student_lora_alpha": 8,
        "student_bf16": False,
        "student_quant": "none",
        "student_gradient_checkpointing": False,
        **(elsewhere if output else {}),
        **settings,
    }


def settings_of(settings: Mapping[str, object]) -> DistillSettings:
    """What the command line of ``settings`` resolves to."""
    return parse_settings(DistillSettings, flags(**settings), program="test", description="")


def distill(settings: Mapping[str, object]) -> None:
    """What ``python scripts/distill_student.py`` does, without a new interpreter."""
    distill_students(settings_of(settings))


def lesson_of(settings: Mapping[str, object]) -> tuple[DistillJob, StudentRows, SoftLabels | None]:
    """The only job of ``settings``, its rows and its teachers."""
    parsed = settings_of(settings)
    (job,) = plan_students(parsed)
    data = DistillData.load(parsed, job)
    return job, data.of_fold(job), data.teachers


def student_dir(root: Path, fold: int = 1) -> Path:
    """Where step 5 puts a student of ``quick``."""
    return root / "model_save" / f"distilled_{NAME}_fold_{fold}"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, earliest first."""
    return sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def assert_same_weights(one: Path, two: Path, atol: float = 0.0) -> None:
    """Both files hold the same tensors, to within ``atol``."""
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        gap = float((second[name] - tensor).abs().max())
        assert torch.isfinite(tensor).all() and gap <= atol, f"{name}: differs by {gap:.3g}"
