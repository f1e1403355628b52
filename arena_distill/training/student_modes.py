"""What each ``main.py --mode`` of the student path does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arena_distill.data.loading import load_labels, load_test
from arena_distill.data.records import Rows, targets
from arena_distill.data.splits import CALIBRATION, HOLDOUT, TRAIN, load_split
from arena_distill.evaluation.calibration import calibration_report, load_calibration, view_probabilities
from arena_distill.evaluation.metrics import Scores, score
from arena_distill.evaluation.scoreboard import format_table, held_out_scores, read_truth
from arena_distill.evaluation.submission import write_submission
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.artifacts import require_writable, sha256_file, sha256_path, write_atomically, write_manifest
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.progress import Progress
from arena_distill.training.student_data import find_file, load_base, load_student_data
from arena_distill.training.student_job import StudentJob
from arena_distill.training.student_settings import StudentSettings

if TYPE_CHECKING:
    from arena_distill.inference.judge import ClassifierJudge

CALIBRATION_FILE = "calibration.json"


def run(settings: StudentSettings) -> None:
    """Do what ``settings.mode`` says."""
    if settings.student_stats_only:
        print_stats(settings)
        return
    modes = {
        "student-train": train,
        "student-calibrate": calibrate,
        "student-eval-holdout": evaluate_holdout,
        "student-infer": infer,
    }
    modes[settings.mode](settings)


def train(settings: StudentSettings) -> None:
    """Fine-tune a student on labels, or find that it is there already."""
    job = StudentJob.plan(settings)
    if not settings.force and job.is_up_to_date():
        print(f"{job.final}: up to date (--force trains it again)")
        return
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()
    from arena_distill.training.student import train_student

    train_student(settings, job)


def print_stats(settings: StudentSettings) -> None:
    """Counts of merged, de-duplicated and used rows, and how fast they load and tokenize; trains nothing."""
    from arena_distill.data.prompts import tokenize_rows
    from arena_distill.models.backbone import check_backbone
    from arena_distill.models.classifier import load_tokenizer
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()

    started = time.monotonic()
    data = load_student_data(settings)
    seconds = time.monotonic() - started
    rows = len(data.train) + len(data.calibration) + len(data.holdout)
    print(data)
    print(f"loading       {rows / seconds:>9,.0f}  rows/s")
    tokenizer = load_tokenizer(
        check_backbone(settings.student_model, "--student-model"), settings.student_use_fast_tokenizer
    )
    with Progress("tokenizing", rows) as progress:
        lengths = [
            tokenize_rows(part, tokenizer).lengths.sum(axis=1) for part in (data.train, data.calibration, data.holdout)
        ]
        progress.update(rows, int(sum(part.sum() for part in lengths)))
        print(f"tokenizing    {progress.rows_per_second:>9,.0f}  rows/s")
        print(f"              {progress.tokens_per_second:>9,.0f}  tokens/s")
    tokens = np.concatenate(lengths)
    cut = (tokens > settings.student_max_length).mean()
    print(
        f"tokens a row  {np.median(tokens):>9,.0f}  median ({tokens.max():,} at most; {cut:.1%} above the length limit)"
    )


def calibrate(settings: StudentSettings) -> None:
    """Fit the temperature on the calibration rows; write ``calibration.json`` and print it."""
    judge = _judge(settings)
    train_file, base = load_base(settings)
    split = load_split(settings.model_dir, base.rows, train_file)
    views = tta_views(settings.tta_lengths, settings.student_infer_tta_swap)
    parts = [split.select(base.rows, part) for part in (CALIBRATION, HOLDOUT)]
    logits = [judge.view_logits(rows, views) for rows in parts]
    report = calibration_report(logits[0], targets(parts[0]), logits[1], targets(parts[1]))
    document = {
        **report,
        "tta_lengths": settings.tta_lengths,
        "tta_swap": settings.student_infer_tta_swap,
        "weights_sha256": _weights_sha256(settings.model_dir),
    }
    path = settings.model_dir / CALIBRATION_FILE
    write_atomically(path, json.dumps(document, indent=2) + "\n")
    for key, value in report.items():
        print(f"{key:<32} {value:.6f}" if isinstance(value, float) else f"{key:<32} {value}")
    print(f"{path}: written")


def evaluate_holdout(settings: StudentSettings) -> None:
    """Score the holdout rows, which steered neither training nor calibration, beside the baselines."""
    judge = _judge(settings)
    train_file, base = load_base(settings)
    split = load_split(settings.model_dir, base.rows, train_file)
    holdout = split.select(base.rows, HOLDOUT)
    votes = targets(holdout)
    logits = judge.view_logits(holdout, tta_views(settings.tta_lengths, settings.student_infer_tta_swap))
    entries = {"student": view_probabilities(logits, 1.0)}
    calibration = settings.model_dir / CALIBRATION_FILE
    if calibration.is_file():
        temperature = _temperature(settings.model_dir)
        entries["student, calibrated"] = view_probabilities(logits, temperature)
        _update_holdout(calibration, logits, votes, temperature)
    table = held_out_scores(split.select(base.rows, TRAIN), holdout, votes, entries)
    print(format_table(table, f"Holdout part of {train_file.name}"))


def infer(settings: StudentSettings) -> None:
    """Write calibrated probabilities for the test file; with labels at hand, print how good they are."""
    started = time.time()
    test_file = find_file(settings.test_csv, "test", "--test-csv")
    test = load_test(test_file)
    print(test.summary)
    ids = test.rows["id"].to_pylist()
    # Whatever is wrong with the labels should show before the model works for an hour.
    votes = load_labels(settings.labels_csv, ids) if settings.labels_csv else None
    truth = read_truth(settings.truth_parquet, ids) if settings.truth_parquet else None
    path = settings.submission_path
    require_writable(path)
    temperature = _temperature(settings.model_dir)
    judge = _judge(settings)
    views = tta_views(settings.tta_lengths, settings.student_infer_tta_swap)
    probabilities = view_probabilities(judge.view_logits(test.rows, views), temperature)
    write_submission(path, ids, probabilities)
    write_manifest(
        path,
        path=path.with_suffix(".manifest.json"),
        stage="student-infer",
        settings=settings.dump(),
        inputs={"test_csv": sha256_file(test_file), "student": sha256_path(settings.model_dir)},
        started=started,
        details={"rows": len(ids), "temperature": temperature, "files": [test.summary.as_dict()]},
    )
    print(f"{path}: {len(ids):,} rows written")
    if votes is not None:
        print(
            format_table(
                _test_scores(settings, test.rows, votes, probabilities, truth), f"Test rows of {test_file.name}"
            )
        )


def _test_scores(
    settings: StudentSettings, test: Rows, votes: np.ndarray, probabilities: np.ndarray, truth: np.ndarray | None
) -> list[tuple[str, Scores]]:
    train_file, base = load_base(settings)
    split = load_split(settings.model_dir, base.rows, train_file)
    # The baselines learn from the rows that the student learned from, no more and no fewer.
    return held_out_scores(split.select(base.rows, TRAIN), test, votes, {"this student": probabilities}, truth)


def _judge(settings: StudentSettings) -> ClassifierJudge:
    from arena_distill.inference.judge import load_judge
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries()
    dtype = "bfloat16" if settings.student_bf16 else "float16" if settings.student_fp16 else "float32"
    return load_judge(
        settings.model_dir,
        max_length=settings.student_max_length,
        batch_rows=settings.student_eval_batch_size,
        dtype=dtype,
        int8=settings.student_infer_8bit,
    )


def _temperature(model_dir: Path) -> float:
    path = model_dir / CALIBRATION_FILE
    if not path.is_file():
        print(f"{path}: missing, so probabilities are not calibrated (--mode student-calibrate fits it)")
        return 1.0
    temperature = load_calibration(path)
    fitted_on = json.loads(path.read_text("utf-8")).get("weights_sha256")
    if fitted_on and fitted_on != _weights_sha256(model_dir):
        raise InputError(f"{path}: was fitted on other weights -> run --mode student-calibrate again")
    return temperature


def _weights_sha256(model_dir: Path) -> str:
    whole = [sha256_file(path) for path in sorted(model_dir.glob("*.safetensors"))]
    if not whole:
        raise InputError(f"{model_dir}: no weights (*.safetensors) -> train the student first")
    return whole[0] if len(whole) == 1 else "+".join(whole)


def _update_holdout(path: Path, logits: np.ndarray, votes: np.ndarray, temperature: float) -> None:
    document = json.loads(path.read_text("utf-8"))
    before, after = (score(view_probabilities(logits, t), votes) for t in (1.0, temperature))
    document |= {
        "logloss_holdout_before": before.log_loss,
        "logloss_holdout_after": after.log_loss,
        "logloss_holdout_improvement": before.log_loss - after.log_loss,
    }
    write_atomically(path, json.dumps(document, indent=2) + "\n")
    for key in ("before", "after", "improvement"):
        print(f"{'logloss_holdout_' + key:<32} {document['logloss_holdout_' + key]:.6f}")
