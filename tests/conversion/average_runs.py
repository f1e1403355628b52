"""Students of three folds as step 5 leaves them, made in a second, and runs of step 6 on them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.average_stage import average_students
from arena_distill.data.prompts import TextFormat
from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.inference.tta import tta_views
from arena_distill.models.adapters import add_lora
from arena_distill.models.backbone import model_identity
from arena_distill.models.classifier import load_classifier, load_tokenizer, token_types
from arena_distill.models.head_file import save_head
from arena_distill.runtime.artifacts import MANIFEST, sha256_file, write_manifest
from arena_distill.runtime.settings import parse_settings
from arena_distill.runtime.stages import DISTILL_STUDENT
from tests.conftest import SAMPLE
from tests.training.teacher_runs import flags

N_FOLDS, LENGTH = 3, 48
NAME = "tiny"
TEMPERATURES = (0.5, 1.0, 4.0)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SCORES = {"log_loss": 1.0, "accuracy": 0.5, "ece": 0.1, "brier": 0.6, "rows": 20}


def make_students(root: Path, base: Path, train_csv: Path) -> Path:
    """Students of all folds under ``root``, with one start and random weights of their own."""
    tokenizer = load_tokenizer(str(base))
    torch.manual_seed(0)
    model = add_lora(load_classifier(str(base), tokenizer)[0], base=str(base), r=4, alpha=8, dropout=0, train_head=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    for fold in range(N_FOLDS):
        generator = torch.Generator().manual_seed(fold)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name] + 0.1 * torch.randn(parameter.shape, generator=generator))
        directory = student_dir(root, fold)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        TextFormat.for_tokenizer(tokenizer, token_types(model)).save(directory)
        save_head(directory)
        write_calibration(directory, {"temperature": TEMPERATURES[fold]}, tta_views([LENGTH], swap=True))
        write_manifest(
            directory,
            stage=DISTILL_STUDENT.name,
            settings={"fold": fold},
            inputs={
                "train_csv": sha256_file(train_csv),
                "folds_json": "folds",
                "student_model": model_identity(str(base)),
                "fold_train_csv": f"train {fold}",
                "fold_val_csv": f"val {fold}",
            },
            started=time.time(),
            details={
                "all_settings": {"train_csv": str(train_csv)},
                "base_model": str(base),
                "base_bits": "none",
                "max_length": LENGTH,
                "fold": fold,
                "n_folds": N_FOLDS,
                "teachers": None,
                "initial_sha256": "start",
                "metrics": {"held_out": SCORES | {"log_loss": 1.0 + fold / 10}},
            },
        )
    return root


def student_dir(root: Path, fold: int) -> Path:
    return root / "model_save" / f"distilled_{NAME}_fold_{fold}"


def avg_lora(root: Path) -> Path:
    return root / "model_save" / "avg_lora"


def merged_model(root: Path) -> Path:
    return root / "model_save" / "final_merged_model"


def copy_of(root: Path, into: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(root, into))


def quick(root: Path, test_csv: Path, **settings: Any) -> dict[str, Any]:
    return {
        "output_dir": root,
        "n_folds": N_FOLDS,
        "student_name": NAME,
        "test_csv": test_csv,
        "labels_csv": SAMPLE / "test_labels.csv",
        **settings,
    }


def settings_of(settings: dict[str, Any]) -> AverageSettings:
    return parse_settings(AverageSettings, flags(**settings), program="test", description="")


def average(settings: dict[str, Any]) -> None:
    """What ``python scripts/average_students.py`` does, without a new interpreter."""
    average_students(settings_of(settings))


def manifest_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / MANIFEST).read_text("utf-8")))


def edit_manifest(directory: Path, **changes: Any) -> None:
    """Change entries; ``inputs`` are changed one by one."""
    manifest = manifest_of(directory)
    manifest["inputs"] |= changes.pop("inputs", {})
    (directory / MANIFEST).write_text(json.dumps(manifest | changes), "utf-8")


def sign(directory: Path) -> None:
    """Make the manifest vouch for the files as they are now."""
    manifest = manifest_of(directory)
    files = {name: directory / name for name in manifest["outputs"] if (directory / name).is_file()}
    manifest["outputs"] = {name: sha256_file(file) for name, file in files.items()}
    manifest["output_bytes"] = {name: file.stat().st_size for name, file in files.items()}
    (directory / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> None:
    tensors = load_file(directory / file)
    edit(tensors)
    save_file(tensors, directory / file, {"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    (directory / CONFIG).write_text(json.dumps(config | changes), "utf-8")
    sign(directory)


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
