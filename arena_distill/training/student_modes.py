"""What each ``main.py --mode`` of the student path does."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np

from arena_distill.data.find_file import find_file
from arena_distill.data.loading import load_labels, load_test
from arena_distill.data.records import targets
from arena_distill.evaluation.calibration import TemperatureBoundWarning, calibration_report, view_probabilities
from arena_distill.evaluation.heldout import HELDOUT_FILE, write_heldout
from arena_distill.evaluation.metrics import score
from arena_distill.evaluation.scoreboard import format_table, held_out_scores, read_truth
from arena_distill.evaluation.submission import write_submission
from arena_distill.runtime.artifacts import (
    require_writable,
    sha256_file,
    sha256_path,
    write_atomically,
    write_manifest,
)
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.progress import Progress
from arena_distill.runtime.whole_pipeline import infer_everything, train_everything
from arena_distill.training.processes import say
from arena_distill.training.student_data import load_student_data
from arena_distill.training.student_job import StudentJob
from arena_distill.training.student_settings import StudentSettings
from arena_distill.training.trained_student import TrainedStudent

FEW_CALIBRATION_ROWS = 200
SECOND_ORDER_LEAK = (
    "note: the other folds' teachers have seen these rows (a second-order leak); the score that counts is that of a "
    "test file which nothing saw"
)
_INFERENCE_SETTINGS = {
    "test_csv", "output_dir", "run", "student_output_model_dir", "student_submission_path", "student_eval_batch_size",
    "student_fp16", "student_bf16", "student_infer_8bit", "student_infer_tta_lengths", "student_infer_tta_swap",
    "cv_num_folds", "cv_fold_idx",
}  # fmt: skip


def run(settings: StudentSettings) -> None:
    """Do what ``settings.mode`` says."""
    if settings.student_stats_only:
        print_stats(settings)
        return
    modes = {
        "train": train_everything,
        "inference": infer_everything,
        "student-train": train,
        "student-distill-train": train,
        "student-calibrate": calibrate,
        "student-eval-holdout": evaluate_holdout,
        "student-infer": infer,
    }
    modes[settings.mode](settings)


def train(settings: StudentSettings) -> None:
    """Fine-tune a student on votes, or on votes and teachers' labels, or find that it is there already."""
    job = StudentJob.plan(settings)
    if not job.is_wanted(settings.force):
        say(f"{job.final}: up to date (--force trains it again)")
        return
    if old := job.replaces():
        say(f"note: {job.final} replaces the one that is there ({old})")
    # Not before: importing torch takes longer than finding that there is nothing to do.
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries("training")
    from arena_distill.training.student import train_student

    try:
        train_student(settings, job)
    except KeyboardInterrupt:
        say(f"{job.final}: interrupted; the same command goes on from the last checkpoint")
        raise


def print_stats(settings: StudentSettings) -> None:
    """Counts of merged, de-duplicated and used rows, and how fast they load and tokenize; trains nothing."""
    from arena_distill.models.quiet import quiet_libraries

    quiet_libraries("tokens")
    from arena_distill.data.prompts import tokenize_rows
    from arena_distill.models.backbone import check_backbone
    from arena_distill.models.classifier import load_tokenizer

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
    """Fit the temperature on rows that trained nothing; write ``calibration.json`` and the holdout's predictions.

    Of a student that holds out a fold, the calibration rows chose the checkpoint, so that the holdout rows serve twice:
    all of them fit the temperature, and what is reported of each comes from a temperature of the others.
    """
    student = TrainedStudent(settings)
    holdout = student.data.holdout
    logits, votes = student.judge.view_logits(holdout, student.views), targets(holdout)
    if student.holds_out_fold:
        fitted_on, fitted = holdout, student.cross_fit(logits)
        report, probabilities, notes = fitted.report, fitted.probabilities, fitted.notes
    else:
        fitted_on = student.data.calibration
        fitting = student.judge.view_logits(fitted_on, student.views)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TemperatureBoundWarning)
            report = dict(calibration_report(fitting, targets(fitted_on), logits, votes))
        probabilities = view_probabilities(logits, report["temperature"])
        notes = tuple(str(warning.message) for warning in caught)
    (student.directory / HELDOUT_FILE).unlink(missing_ok=True)  # it goes with the calibration
    student.write_calibration(report | {"second_order_leak": bool(student.teachers)})
    write_heldout(student.directory / HELDOUT_FILE, holdout, probabilities)
    for key, value in report.items():
        print(f"{key:<32} {value:.6f}" if isinstance(value, float) else f"{key:<32} {value}")
    for text in notes:
        print(f"note: {text}")
    if len(fitted_on) < FEW_CALIBRATION_ROWS:
        print(f"note: {len(fitted_on)} rows say little about a temperature; compare before and after on the holdout")
    if student.teachers:
        print(SECOND_ORDER_LEAK)
    print(f"{student.calibration_file}: written")


def evaluate_holdout(settings: StudentSettings) -> None:
    """Score the holdout rows, which steered neither training nor calibration, beside the baselines."""
    student = TrainedStudent(settings)
    holdout = student.data.holdout
    votes = targets(holdout)
    logits = student.judge.view_logits(holdout, student.views)
    entries = {"student": view_probabilities(logits, 1.0)}
    if student.calibration_file.is_file():
        temperature = student.temperature()
        entries["student, calibrated"] = (
            student.cross_fit(logits).probabilities
            if student.holds_out_fold
            else view_probabilities(logits, temperature)
        )
        if student.has_fitted_views():  # else the file's other figures would be of other views
            _update_holdout(student.calibration_file, *(score(p, votes).log_loss for p in entries.values()))
    table = held_out_scores(student.data.train, holdout, votes, entries)
    print(format_table(table, f"Holdout part of {student.train_file.name}"))
    if student.teachers:
        print(SECOND_ORDER_LEAK)


def infer(settings: StudentSettings) -> None:
    """Write calibrated probabilities for the test file; with labels at hand, print how good they are."""
    started = time.time()
    test_file = find_file(settings.test_csv, "test", "--test-csv")
    test = load_test(test_file)
    print(test.summary)
    ids = test.rows["id"].to_pylist()
    student = TrainedStudent(settings)
    path = settings.submission_path
    # Whatever is wrong with the labels, or with the place to write, should show before the model works for an hour.
    require_writable(path)
    _refuse_overwriting(path, [test_file, settings.labels_csv, settings.truth_parquet, settings.train_csv], student)
    votes = load_labels(settings.labels_csv, ids) if settings.labels_csv else None
    truth = read_truth(settings.truth_parquet, ids) if settings.truth_parquet else None
    learned_from = student.data.train if votes is not None else None
    temperature = student.temperature()
    probabilities = view_probabilities(student.judge.view_logits(test.rows, student.views), temperature)
    write_submission(path, ids, probabilities)
    write_manifest(
        path,
        path=path.with_suffix(".manifest.json"),
        stage="student-infer",
        settings={name: value for name, value in settings.dump().items() if name in _INFERENCE_SETTINGS}
        | {"student_max_length": student.max_length},
        inputs={"test_csv": sha256_file(test_file), "student": sha256_path(student.directory)},
        started=started,
        details={
            "rows": len(ids),
            "temperature": temperature,
            "files": [test.summary.as_dict()],
            "weights_sha256": student.weights,
        },
    )
    print(f"{path}: {len(ids):,} rows written")
    if votes is not None and learned_from is not None:
        # The baselines learn from the rows that the student learned from, no more and no fewer.
        table = held_out_scores(learned_from, test.rows, votes, {"this student": probabilities}, truth)
        print(format_table(table, f"Test rows of {test_file.name}"))


def _refuse_overwriting(path: Path, inputs: list[Path | str], student: TrainedStudent) -> None:
    for written in (path.resolve(), path.with_suffix(".manifest.json").resolve()):
        if written in {Path(given).resolve() for given in inputs if given}:
            raise InputError(f"{path}: would overwrite an input -> choose another --student-submission-path")
        if written.is_relative_to(student.directory.resolve()):
            raise InputError(f"{path}: lies inside the student -> choose another --student-submission-path")


def _update_holdout(path: Path, before: float, after: float) -> None:
    found = {"before": before, "after": after, "improvement": before - after}
    figures = {f"logloss_holdout_{name}": value for name, value in found.items()}
    write_atomically(path, json.dumps(json.loads(path.read_text("utf-8-sig")) | figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:<32} {value:.6f}")
