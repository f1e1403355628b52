from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import kaggle_log_loss
from arena_distill.evaluation.submission import write_submission
from arena_distill.runtime.errors import EXIT_BAD_INPUT

ROOT = Path(__file__).resolve().parents[2]


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "baselines.py", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def write_csv(path: Path, rows: Rows, columns: list[str]) -> Path:
    names = ("model_a", "model_b", "tie")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows.to_pylist():
            row["winner"] = names[row["label"]]
            writer.writerow([json.dumps(row[name]) if isinstance(row[name], list) else row[name] for name in columns])
    return path


def test_it_prints_the_baselines_the_submissions_and_the_truth(
    tmp_path: Path, length_decides: Callable[..., Rows]
) -> None:
    texts = ["prompt", "response_a", "response_b"]
    test = length_decides(60, seed=1)
    ids = test["id"].to_pylist()
    p = 0.8 * targets(test) + 0.2 / 3
    submission = tmp_path / "student.csv"
    write_submission(submission, ids[::-1], p[::-1])
    truth = tmp_path / "truth.parquet"
    columns = zip(("p_model_a", "p_model_b", "p_tie"), np.full((3, 60), 1 / 3), strict=True)
    pq.write_table(pa.table({"id": ids} | dict(columns)), truth)
    done = run_script(
        *("--train", write_csv(tmp_path / "train.csv", length_decides(120, seed=0), ["id", *texts, "winner"])),
        *("--test", write_csv(tmp_path / "test.csv", test, ["id", *texts])),
        *("--labels", write_csv(tmp_path / "labels.csv", test, ["id", "winner"])),
        *("--submission", submission, "--truth", truth),
    )
    assert done.returncode == 0, done.stderr
    title, _, *lines = done.stdout.splitlines()
    assert title == "Held-out scores (60 rows)"
    names = ["constant prior", "length", "TF-IDF", str(submission), "Bayes optimal"]
    assert [line.startswith(name + " ") for line, name in zip(lines, names, strict=True)] == [True] * 5
    assert lines[3].split()[-4] == f"{kaggle_log_loss(p, targets(test)):.4f}"
    assert lines[4].split()[-4] == "1.0986"


def test_a_missing_file_is_one_clear_line_and_exit_code_3(tmp_path: Path) -> None:
    absent = tmp_path / "absent.csv"
    done = run_script("--train", absent, "--test", absent, "--labels", absent)
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr.startswith("error: ")
    assert str(absent) in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_neither_numpy_nor_scikit_learn() -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "baselines.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"numpy", "pyarrow", "scipy", "sklearn", "torch"}
