"""A finished run in small: every file that steps 2 to 9 leave, by their own manifests and evaluation, without training.

The weights are a few random bytes; everything that a report reads is what the stages would have written.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.conversion.average_settings import AverageSettings
from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.data.fold_settings import FoldSettings
from arena_distill.data.loading import load_labels, load_test
from arena_distill.evaluation.evaluate_submission import evaluate
from arena_distill.evaluation.evaluation_settings import EvaluationSettings
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.evaluation.submission import write_submission
from arena_distill.evaluation.submission_ensemble import ensemble_files
from arena_distill.inference.predict_job import student_identity
from arena_distill.runtime.artifacts import fingerprint, read_manifest, sha256_file, write_manifest
from arena_distill.training.distill_settings import DistillSettings
from arena_distill.training.teacher_settings import TeacherSettings
from tests.conftest import SAMPLE

N_FOLDS = 2
TEMPERATURE = 0.9
HEAD = "5" * 64


@dataclass(frozen=True)
class FinishedRun:
    """Where it is."""

    root: Path  # output directory
    run: str

    @property
    def models(self) -> Path:
        return self.root / "model_save" / self.run

    def sub(self, name: str) -> Path:
        return self.root / "sub" / f"{self.run}_{name}"

    def copy(self, root: Path) -> FinishedRun:
        """Another one, to spoil. The data files stay where they are."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return FinishedRun(root, self.run)


def make_finished_run(root: Path, run: str = "x") -> FinishedRun:
    """Everything from the folds to the evaluation."""
    made = FinishedRun(root, run)
    data = root / "data"
    data.mkdir(parents=True)
    for name, rows in (("train.csv", 200), ("test.csv", 60), ("test_labels.csv", 60)):
        _head_of(SAMPLE / name, rows, data / name)
    write_folds(made)
    for fold in range(N_FOLDS):
        write_teacher(made, fold)
        write_teacher_logits(made, fold)
    write_oof_table(made)
    for fold in range(N_FOLDS):
        write_student(made, fold)
    write_averaged(made)
    write_merged(made)
    write_quantized(made)
    write_predicted(made)
    write_ensemble(made)
    write_evaluation(made)
    return made


def _head_of(file: Path, rows: int, into: Path) -> None:
    with file.open(newline="", encoding="utf-8") as source, into.open("w", newline="", encoding="utf-8") as out:
        for number, row in enumerate(csv.reader(source)):
            if number <= rows:
                csv.writer(out).writerow(row)


def _common(made: FinishedRun) -> dict[str, Any]:
    return {"output_dir": made.root, "run": made.run, "train_csv": str(made.root / "data" / "train.csv")}


def _rows(made: FinishedRun) -> dict[str, str]:
    return {"test_csv": str(made.root / "data" / "test.csv")}


def _hashes(made: FinishedRun) -> dict[str, str]:
    folds = made.root / "data" / "processed_data" / made.run / "folds_2_seed42.json"
    return {"train_csv": sha256_file(made.root / "data" / "train.csv"), "folds_json": sha256_file(folds)}


def _write(directory: Path, files: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content), "utf-8")


def _weights(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def _scores(loss: float, rows: int) -> dict[str, float]:
    return {"log_loss": loss, "accuracy": 0.5, "ece": 0.05, "brier": 0.6, "rows": rows}


def _log(fold: int, *, evaluated: bool) -> list[dict[str, float]]:
    losses = [{"loss": 1.1 - 0.01 * step - 0.01 * fold, "step": 10 * step} for step in range(1, 5)]
    found = [{"eval_log_loss": 1.05 - 0.01 * step + 0.02 * fold, "step": 10 * step} for step in (2, 4)]
    return [*losses, *(found if evaluated else []), {"train_samples_per_second": 100.0 + fold, "step": 40}]


def write_folds(made: FinishedRun) -> None:
    """Step 2."""
    folds = made.root / "data" / "processed_data" / made.run / "folds_2_seed42.json"
    _write(folds.parent, {folds.name: {"schema_version": 1, "n_folds": N_FOLDS}})
    directory = made.root / "data" / f"fold_data_{made.run}"
    _write(directory, {f"fold_{fold}_{part}.csv": b"id\n1\n" for fold in range(N_FOLDS) for part in ("train", "val")})
    train = made.root / "data" / "train.csv"
    loading = {"file": str(train), "rows_read": 200, "rows_used": 198, "dropped": {"no vote": 2}, "repaired": {}}
    write_manifest(
        directory,
        stage="step2_make_folds",
        settings={"n_folds": N_FOLDS},
        inputs={"train_csv": sha256_file(train)},
        started=time.time() - 1,
        details={
            "all_settings": FoldSettings(**_common(made), n_folds=N_FOLDS).dump(),
            "folds_json": folds.name,
            "folds_json_sha256": sha256_file(folds),
            "loading": [loading],
        },
    )


def write_teacher(made: FinishedRun, fold: int, seed: int = 0) -> None:
    """Step 3, a teacher of which every weight was trained."""
    directory = made.models / f"big_fold_{fold}"
    settings = TeacherSettings(**_common(made), n_folds=N_FOLDS, llama_name="big", skip_qwen=True, teacher_lr=3e-4)
    _write(
        directory,
        {"model.safetensors": _weights(seed + fold, 40_000), "training_log.json": _log(fold, evaluated=False)},
    )
    write_manifest(
        directory,
        stage="step3_train_teachers",
        settings={"fold": fold},
        inputs=_hashes(made) | {"base_model": "org/big"},
        started=time.time() - 30,
        details={
            "family": "big",
            "fold": fold,
            "base_model": "org/big",
            "processes": 4,
            "all_settings": settings.dump(),
            "metrics": {"held_out": _scores(1.0, 99)},
        },
    )


def identity(directory: Path) -> str:
    """As later stages record it."""
    return fingerprint({}, (read_manifest(directory) or {})["outputs"])


def write_teacher_logits(made: FinishedRun, fold: int) -> None:
    """Step 4, one fold."""
    directory = made.models / "teacher_logits" / f"big_fold_{fold}"
    _write(directory, {f"teacher_logits_fold_{fold}.npy": _weights(fold, 500)})
    write_manifest(
        directory,
        stage="step4_infer_teacher_logits",
        settings={"fold": fold, "max_length": 1024, "swap": True, "quant": "none", "save_lasttok": False},
        inputs=_hashes(made) | {"teacher": identity(made.models / f"big_fold_{fold}")},
        started=time.time() - 5,
        details={"family": "big", "fold": fold, "rows": {"held_out": 99, "base": 198}, "sequences": 198},
    )


def write_oof_table(made: FinishedRun) -> None:
    """Step 4, the table."""
    table = made.models / "teacher_logits" / "oof_probs.parquet"
    pq.write_table(pa.table({"id": ["1"], "p": [0.5]}), table)
    logits = {f"big_fold_{fold}": identity(table.parent / f"big_fold_{fold}") for fold in range(N_FOLDS)}
    write_manifest(
        table,
        path=table.with_suffix(".manifest.json"),
        stage="step4_infer_teacher_logits",
        settings={"families": ["big"]},
        inputs=_hashes(made) | logits,
        started=time.time() - 2,
        details={
            "rows": 198,
            "metrics": {"TF-IDF": _scores(1.04, 198), "big": _scores(0.98, 198), "ensemble": _scores(0.97, 198)},
        },
    )


def write_student(made: FinishedRun, fold: int, seed: int = 100, **changed: Any) -> None:
    """Step 5."""
    directory = made.models / f"distilled_small_fold_{fold}"
    settings = DistillSettings(
        **(_common(made) | {"n_folds": N_FOLDS, "student_name": "small", "student_lr": 1e-3} | changed)
    )
    files = {"adapter_model.safetensors": _weights(seed + fold, 3_000), "classifier_head.safetensors": b"head"}
    _write(directory, files | {"training_log.json": _log(fold, evaluated=True)})
    table = made.models / "teacher_logits" / "oof_probs.parquet"
    write_manifest(
        directory,
        stage="step5_distill_student",
        settings={"fold": fold},
        inputs=_hashes(made) | {"oof_table": sha256_file(table), "student_model": "org/small"},
        started=time.time() - 20,
        details={
            "fold": fold,
            "n_folds": N_FOLDS,
            "max_length": 192,
            "base_model": "org/small",
            "teachers": {"big": 1.0},
            "all_settings": settings.dump(),
            "metrics": {"held_out": _scores(0.99 + 0.03 * fold, 50 + fold)},
        },
    )


def _averaging(made: FinishedRun) -> AverageSettings:
    return AverageSettings(**_common(made), **_rows(made), n_folds=N_FOLDS, student_name="small")


def _of_students(made: FinishedRun) -> dict[str, str]:
    return {f"fold_{fold}": identity(made.models / f"distilled_small_fold_{fold}") for fold in range(N_FOLDS)}


def write_averaged(made: FinishedRun) -> None:
    """Step 6, the adapter."""
    directory = made.models / "avg_lora"
    _write(directory, {"adapter_model.safetensors": _weights(200, 6_000)})
    write_manifest(
        directory,
        stage="step6_lora_ensemble",
        settings={},
        inputs=_hashes(made) | _of_students(made),
        started=time.time() - 1,
        details={"folds": [0, 1], "head_sha256": HEAD, "all_settings": _averaging(made).dump()},
    )


def write_merged(made: FinishedRun, seed: int = 300, rows: int = 60, head: str = HEAD) -> None:
    """Step 6, the merged model with its proofs and scores."""
    directory = made.models / "final_merged_model"
    weights = _weights(seed, 20_000)
    calibration = {"temperature": TEMPERATURE, "views": ["192", "192 swapped"]}
    _write(
        directory, {"model.safetensors": weights, "config.json": {"dtype": "float32"}, "calibration.json": calibration}
    )
    write_manifest(
        directory,
        stage="step6_lora_ensemble",
        settings={"merged_dtype": ""},
        inputs=_hashes(made) | _of_students(made) | {"test_csv": sha256_file(made.root / "data" / "test.csv")},
        started=time.time() - 10,
        details={
            "folds": [0, 1],
            "base_model": "org/small",
            "max_length": 192,
            "teachers": {"big": 1.0},
            "head_sha256": head,
            "adapter_outputs": identity(made.models / "avg_lora"),
            "all_settings": _averaging(made).dump(),
            "conversion": {
                "method": "exact",
                "relative_distance": 0.2,
                "average_error": 4e-7,
                "average_rank": 0,
                "merge_error": 6e-8,
                "merge_weight_error": 1e-7,
                "size_bytes": {"student": 3_000, "avg_lora": 6_000, "base": 19_000, "merged": 20_000},
            },
            "evaluation": {
                "rows": rows,
                "test_csv": sha256_file(made.root / "data" / "test.csv"),
                "folds": [{"fold": fold, **_scores(1.01 + 0.02 * fold, rows)} for fold in range(N_FOLDS)],
                "averaged_exact": _scores(1.012, rows),
                "averaged_mean": _scores(1.03, rows),
                "merged": _scores(1.0121, rows),
                "probability_ensemble": _scores(1.005, rows),
            },
        },
    )


def write_quantized(made: FinishedRun, seed: int = 400, head: str = HEAD) -> None:
    """Step 7."""
    directory, merged = made.models / "final_quantized_model", made.models / "final_merged_model"
    layers = [
        {"module": f"model.layers.{k}.mlp.{kind}_proj", "weight_error": 0.007 + 0.0001 * k}
        for k in range(3)
        for kind in ("up", "down")
    ]
    report = {
        "rows": 60,
        "temperature": TEMPERATURE,
        "log_loss": {"before": 1.0, "after": 1.001, "increase": 0.001},
        "kl": 2e-6,
        "agreement": 0.99,
        "largest_probability_gap": 0.004,
        "scores": {"before": _scores(1.0, 60), "after": _scores(1.001, 60)},
        "rows_are": "test rows that nothing saw (test.csv)",
        "size_bytes": {"before": 20_000, "after": 8_000, "ratio": 0.4},
        "bound": 0.005,
        "layers": layers,
    }
    files = {"model.safetensors": _weights(seed, 8_000), "quantization_report.json": report}
    calibration = json.loads((merged / "calibration.json").read_text("utf-8"))
    _write(directory, files | {"config.json": {}, "calibration.json": calibration})
    texts = made.root / "data" / "train.csv"
    test = made.root / "data" / "test.csv"
    settings = QuantizeSettings(**_common(made), **_rows(made))
    write_manifest(
        directory,
        stage="step7_quantize_gptq",
        settings={"quant_min_agreement": 0.97},
        inputs={"model": student_identity(merged), "calib_csv": sha256_file(texts), "test_csv": sha256_file(test)},
        started=time.time() - 15,
        details={
            "folds": [0, 1],
            "base_model": "org/small",
            "max_length": 192,
            "teachers": {"big": 1.0},
            "head_sha256": head,
            "quantization": {"method": "gptq", "bits": 8, "group_size": 128},
            "all_settings": settings.dump(),
        },
    )


def write_predicted(made: FinishedRun, model: str = "final_quantized_model", seed: int = 7) -> None:
    """Step 8: noisy but sensible logits of two views."""
    test = load_test(made.root / "data" / "test.csv")
    ids = test.rows["id"].to_pylist()
    votes = load_labels(made.root / "data" / "test_labels.csv", ids)
    rng = np.random.default_rng(seed)
    logits = (0.8 * votes + rng.normal(0, 0.7, (2, *votes.shape))).astype(np.float32)
    out = made.sub("final_submission.csv")
    out.parent.mkdir(exist_ok=True)
    write_submission(out, ids, softmax(logits, TEMPERATURE).mean(axis=0))
    flat = logits.reshape(-1, 3)
    columns = {
        "id": pa.array(ids * 2, pa.string()),
        "max_length": pa.array([192] * len(flat), pa.int32()),
        "swapped": pa.array([False] * len(ids) + [True] * len(ids), pa.bool_()),
    } | {f"logit_{name}": flat[:, k] for k, name in enumerate(("model_a", "model_b", "tie"))}
    pq.write_table(pa.table(columns), out.with_suffix(".logits.parquet"))
    directory = made.models / model
    manifest = read_manifest(directory) or {}
    outputs = manifest["outputs"]
    write_manifest(
        out,
        path=out.with_suffix(".manifest.json"),
        stage="step8_infer_tta",
        settings={"tta_lengths": [192], "tta_swap": True, "predict_bf16": None},
        inputs={
            "test_csv": sha256_file(made.root / "data" / "test.csv"),
            "calibration": sha256_file(directory / "calibration.json"),
        },
        started=time.time() - 6,
        details={
            "rows": len(ids),
            "temperature": TEMPERATURE,
            "views": ["192", "192 swapped"],
            "weights_sha256": "+".join(outputs[name] for name in sorted(outputs) if name.endswith(".safetensors")),
            "head_sha256": manifest["head_sha256"],
            "speed": {"rows_per_second": 83.5, "tokens_per_second": 30_000.0, "seconds": 3.0, "tokens": 90_000},
            "model_dir": f"model_save/{made.run}/{model}",
            "device": "cpu",
        },
    )


def write_ensemble(made: FinishedRun) -> None:
    """Step 9, the ensemble of the one submission."""
    with contextlib.chdir(made.root):  # the manifest names members as they are given, and users give short names
        members = [Path("sub") / f"{made.run}_final_submission.csv"]
        out = Path("sub") / f"{made.run}_final_ensemble.csv"
        ensemble_files(out, members, weights=None, space="mean", test_csv=None, started=time.time())


def write_evaluation(made: FinishedRun) -> None:
    """Step 9, the evaluation."""
    evaluate(EvaluationSettings(**_common(made), **_rows(made), evaluation_resamples=100))


def own_score(made: FinishedRun) -> float:
    """Log loss of the submission, computed apart."""
    ids = load_test(made.root / "data" / "test.csv").rows["id"].to_pylist()
    votes = load_labels(made.root / "data" / "test_labels.csv", ids)
    with made.sub("final_ensemble.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return score(np.array([[float(value) for value in row[1:]] for row in rows]), votes).log_loss
