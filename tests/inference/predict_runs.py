"""Students of every kind, made in a second, and short runs of step 8 for tests."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from arena_distill.data.prompts import TextFormat, View
from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.inference.predict_stage import predict
from arena_distill.models.classifier import HEAD_MODULES, load_classifier, load_tokenizer, token_types
from arena_distill.models.head_file import head_sha256, read_head, save_head
from arena_distill.models.merge import write_merged
from arena_distill.runtime.artifacts import write_manifest
from arena_distill.runtime.settings import parse_settings
from arena_distill.training.judge_model import Recipe, make_model
from tests.conftest import REPOSITORY

MAX_LENGTH, TEMPERATURE = 96, 1.7
KINDS = ("plain", "lora", "merged")
SCRIPT = REPOSITORY / "scripts" / "student_gptq_infer.py"
RECIPE = Recipe(
    head="seq_cls", label_words=(), lora_r=4, lora_alpha=8, lora_dropout=0.0, quant="none", bf16=False
)  # fmt: skip


def make_student(directory: Path, base: Path, kind: str, seed: int = 0) -> Path:
    """A finished student with a head that has something to say; equal seeds give equal weights."""
    directory.mkdir(parents=True)
    if kind == "merged":
        adapter = make_student(directory.with_name(f"{directory.name}_adapter"), base, "lora", seed)
        write_merged(str(base), adapter, directory)
        TextFormat.load(adapter).save(directory)
        save_head(directory)
    elif kind == "lora":
        torch.manual_seed(seed)
        judge = make_model(str(base), str(base), RECIPE)
        _shake(judge.model, ("lora_B", *HEAD_MODULES))
        judge.model.save_pretrained(directory)
        judge.tokenizer.save_pretrained(directory)
        judge.layout.save(directory)
        save_head(directory)
    else:
        torch.manual_seed(seed)
        tokenizer = load_tokenizer(str(base))
        model, _ = load_classifier(str(base), tokenizer)
        _shake(model, ("weight",))
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        TextFormat.for_tokenizer(tokenizer, token_types(model)).save(directory)
    sign(directory, **({"head_sha256": head_sha256(read_head(directory))} if kind == "merged" else {}))
    calibrate(directory)
    return directory


def _shake(model: torch.nn.Module, names: tuple[str, ...]) -> None:
    """Large random matrices, as training would leave them; fresh ones hardly tell one row from another."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if set(name.split(".")) & set(names) and parameter.ndim > 1:
                parameter.normal_(0, 0.3)


def sign(directory: Path, **details: object) -> None:
    """The manifest that a stage would write last."""
    write_manifest(
        directory,
        stage="student-train",
        settings={},
        inputs={},
        started=time.time(),
        details={"max_length": MAX_LENGTH, **details},
    )


def calibrate(directory: Path, temperature: float = TEMPERATURE) -> None:
    """A temperature for these weights, as if fitted with the student's own length in both orders."""
    write_calibration(directory, {"temperature": temperature}, [View(MAX_LENGTH), View(MAX_LENGTH, True)])


def arguments(root: Path, **settings: object) -> list[str]:
    """The command line of a run whose output lies under ``root``; settings by field name."""
    words = []
    for name, value in ({"out": root / "out.csv"} | settings).items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
    return words


def infer(root: Path, **settings: object) -> Path:
    """Step 8 in this process."""
    predict(parse_settings(PredictSettings, arguments(root, **settings), program="x", description=""))
    return root / "out.csv"


def start_infer(root: Path, **settings: object) -> subprocess.Popen[str]:
    """Step 8 in a process of its own."""
    command = [sys.executable, str(SCRIPT), *arguments(root, **settings)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ))


def probabilities(path: Path) -> np.ndarray:
    """What a submission says, ``[N, 3]``."""
    return read_submission(path)[1]


def logits_of(path: Path) -> np.ndarray:
    """Raw logits ``[V, N, 3]`` of the file beside a submission; read by pyarrow alone."""
    table = pq.read_table(path.with_suffix(".logits.parquet"))
    values = np.column_stack([table[f"logit_{name}"].to_numpy() for name in ("model_a", "model_b", "tie")])
    views = dict.fromkeys(zip(table["max_length"].to_pylist(), table["swapped"].to_pylist(), strict=True))
    return values.reshape(len(views), -1, 3)


def manifest(path: Path) -> dict[str, object]:
    """The manifest of a submission."""
    return dict(json.loads(path.with_suffix(".manifest.json").read_text("utf-8")))


def results(root: Path) -> dict[str, bytes]:
    """Submission and logits under their names; manifests hold times."""
    return {path.name: path.read_bytes() for path in sorted(root.glob("out*")) if path.suffix != ".json"}


def hidden(root: Path) -> list[Path]:
    """What unfinished runs left."""
    return sorted(path for path in root.glob(".*") if path.is_dir())


def changed_csv(source: Path, into: Path, change: Callable[[list[dict[str, str]]], object]) -> Path:
    """A copy of a CSV file with its lines changed."""
    with source.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    change(lines)
    with into.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    return into
