"""Predicting a test file with one student: every distinct sequence scored once, kept, and averaged over the views.

What it can do: students of every kind (plain, adapter on its base, merged, quantized), any lengths and both orders,
temperature, going on after a kill with the same bits on a CPU. What it doesn't: spread one model over several GPUs.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arena_distill.data.batching import token_budget_batches
from arena_distill.data.prompts import Sequences, TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import CLASSES, Rows
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.calibration_file import (
    read_calibration,
    read_calibration_file,
    temperature_for,
    view_names,
    weights_sha256,
)
from arena_distill.evaluation.eval_rows import EvalRows, load_eval_rows
from arena_distill.evaluation.scoreboard import TRUTH_NAME, format_table, scoreboard
from arena_distill.evaluation.submission import write_submission
from arena_distill.inference.judge import ClassifierJudge, batch_tokens, in_class_order, load_judge
from arena_distill.inference.parts import Parts
from arena_distill.inference.predict_job import LENGTHS_SETTING, STAGE, PredictJob
from arena_distill.inference.predict_settings import PredictSettings
from arena_distill.models.classifier import check_lengths, load_tokenizer
from arena_distill.models.exported_head import require_same_head, student_head_sha256
from arena_distill.runtime.artifacts import locked, require_recorded, was_restarted, write_manifest
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.interruption import checkpointing

SECONDS = len(CLASSES)  # column of the parts, after the logits: what a sequence's batch took, shared out


@dataclass(frozen=True)
class Work:
    """What is asked of the student: sequences, and which of them each view shows each row as."""

    sequences: Sequences
    number: np.ndarray  # int64 [V, N]: sequence of each view and row
    batches: list[np.ndarray]

    @property
    def tokens(self) -> int:
        """Of all distinct sequences, padding not counted."""
        return int(self.sequences.ids.lengths.sum())


@dataclass(frozen=True)
class Arithmetic:
    """What a model is computed with."""

    device: str
    bf16: bool

    @classmethod
    def of(cls, settings: PredictSettings) -> Arithmetic:
        """The GPU if there is one; 16 bits where that is asked for, or saves time."""
        cuda = torch.cuda.is_available()
        wanted = settings.predict_bf16
        return cls("cuda" if cuda else "cpu", (cuda and torch.cuda.is_bf16_supported()) if wanted is None else wanted)

    @property
    def dtype(self) -> str:
        """As ``load_judge`` names it."""
        return "bfloat16" if self.bf16 else "float32"

    @property
    def device_name(self) -> str:
        """For manifests."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"


def predict_rows(settings: PredictSettings, job: PredictJob) -> None:
    """Score what is missing, then put submission, logits and manifest in their places.

    Raises:
        InputError: the head is a foreign one, the calibration is of other weights, the student or the rows cannot be
            read, or its logits are not finite.
        SettingsError: a length limit beyond the model's positions, or a sequence that does not fit the memory.
        ArenaError: another job writes the same submission.
    """
    started = time.time()
    with locked(job.final):
        if job.head is not None:
            require_same_head(job.model, job.head)
        head = student_head_sha256(job.model)
        require_recorded(job.model, ".safetensors")
        weights = weights_sha256(job.model)  # before they are loaded, so of what is loaded
        temperature = _temperature(job, weights)
        rows = load_eval_rows(settings)
        print(rows.summary)
        arithmetic = Arithmetic.of(settings)
        longest = max(view.max_length for view in job.views)
        budget = settings.predict_batch_tokens or batch_tokens(settings.batch_size, longest, arithmetic.device)
        place = job.workplace({"batch_tokens": budget, "dtype": arithmetic.dtype, "device": arithmetic.device})
        work = assemble_work(job.model, rows.rows, job.views, budget)
        scores = _scores(settings, job, work, place, arithmetic, budget)
        logits = in_class_order(scores[:, :SECONDS][work.number], job.views)
        probabilities = view_probabilities(logits, temperature)
        speed = _speed(work, len(rows.ids), float(scores[:, SECONDS].sum(dtype=np.float64)))
        details = {
            "all_settings": settings.dump(),
            "rows": len(rows.ids),
            "sequences": len(work.sequences),
            "temperature": temperature,
            "views": view_names(job.views),
            "weights_sha256": weights,
            "head_sha256": head,
            "speed": speed,
            "model_dir": str(job.model),
            "device": arithmetic.device_name,
            "dtype": arithmetic.dtype,
            "batch_tokens": budget,
        }
        _publish(job, place, rows, logits, probabilities, started, details)
    print(
        f"{job.final}: {len(rows.ids):,} rows written, temperature {temperature:.4f}, "
        f"views {', '.join(view_names(job.views))}"
    )
    print(
        f"{len(work.sequences):,} distinct sequences for {work.number.size:,} views of rows, {work.tokens:,} tokens: "
        f"{speed['rows_per_second']:,.1f} rows/s, {speed['tokens_per_second']:,.0f} tokens/s on {details['device']} "
        f"({arithmetic.dtype})"
    )
    _print_scores(rows, logits, probabilities, temperature)


def assemble_work(model: Path, rows: Rows, views: list[View], budget: int) -> Work:
    """Tokenize the rows and cut them into batches of ``budget`` tokens; the model is not needed for it."""
    tokens = tokenize_rows(rows, load_tokenizer(str(model)))
    sequences, number = assemble(tokens, TextFormat.load(model), views)
    return Work(sequences, number, token_budget_batches(sequences.ids.lengths, budget))


def _temperature(job: PredictJob, weights: str) -> float:
    given = read_calibration_file(job.calibration) if job.calibration_given else None
    if given is not None and given.figures.get("weights_sha256") not in (None, weights):
        print(f"note: {job.calibration} was fitted on other weights than those of {job.model}")
    calibration = given or read_calibration(job.model, weights)
    return temperature_for(calibration, job.views, job.calibration, "use those, or fit it with these")


def _scores(
    settings: PredictSettings, job: PredictJob, work: Work, place: Path, arithmetic: Arithmetic, budget: int
) -> np.ndarray:
    """Logits of every sequence as the model gives them, and its share of the time, float32 ``[S, 4]``."""
    parts = Parts(place, (len(work.sequences), SECONDS + 1))
    if settings.force and not was_restarted():  # else it has been heeded
        parts.forget(0, 1)
    done = np.isfinite(parts.together()).all(axis=1)
    todo = [batch for batch in work.batches if not done[batch].all()]
    if todo:
        if len(todo) < len(work.batches):
            there = len(work.batches) - len(todo)
            print(f"{job.final}: going on, {there:,} of {len(work.batches):,} batches are there")
        judge = load_judge(job.model, max_length=max(view.max_length for view in job.views), dtype=arithmetic.dtype)
        check_lengths(judge.model, [view.max_length for view in job.views], LENGTHS_SETTING)
        judge.max_batch_tokens = budget
        _score_into(judge, work, todo, parts.open(0, 1), job)
    return parts.together()


def _score_into(judge: ClassifierJudge, work: Work, todo: list[np.ndarray], values: np.memmap, job: PredictJob) -> None:
    """Put logits and seconds of some batches into their rows of ``values``, float32 ``[S, 4]``."""
    clock = _Clock(values)
    try:
        judge.score_batches(work.sequences, todo, values[:, :SECONDS], clock.begin)
    except InputError as error:
        raise InputError(f"{job.model}: {error}") from error
    finally:
        clock.stop()
        values.flush()


class _Clock:
    """Notes what each batch took; a sequence without that counts as not scored, so a kill costs one batch at most."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.batch: np.ndarray | None = None
        self.started = 0.0

    def begin(self, batch: np.ndarray) -> None:
        self.stop()
        self.batch, self.started = batch, time.perf_counter()

    def stop(self) -> None:
        if self.batch is not None:
            self.values[self.batch, SECONDS] = (time.perf_counter() - self.started) / len(self.batch)
        self.batch = None


def _speed(work: Work, rows: int, seconds: float) -> dict[str, float | int]:
    """Of tokenized rows, over all processes that had a part in it; loading the model does not count."""
    return {
        "rows_per_second": rows / seconds,
        "tokens_per_second": work.tokens / seconds,
        "seconds": seconds,
        "tokens": work.tokens,
    }


def logits_table(ids: list[str], logits: np.ndarray, views: list[View]) -> pa.Table:
    """Raw logits ``[V, N, 3]`` in class order, one line per view and row, rows in their order within a view."""
    rows = len(ids)
    columns = {
        "id": pa.array(ids * len(views), pa.string()),
        "max_length": pa.array(np.repeat([view.max_length for view in views], rows), pa.int32()),
        "swapped": pa.array(np.repeat([view.swap for view in views], rows), pa.bool_()),
    }
    flat = logits.reshape(-1, len(CLASSES)).astype(np.float32, copy=False)
    names = (f"logit_{name}" for name in CLASSES)
    return pa.table(columns | {name: np.ascontiguousarray(flat[:, k]) for k, name in enumerate(names)})


def _publish(
    job: PredictJob,
    place: Path,
    rows: EvalRows,
    logits: np.ndarray,
    probabilities: np.ndarray,
    started: float,
    details: dict[str, Any],
) -> None:
    """Make the three files apart, then rename them; while two may not belong together there is no manifest."""
    fresh = place / "finished"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_submission(fresh / job.final.name, rows.ids, probabilities)
    pq.write_table(logits_table(rows.ids, logits, job.views), fresh / job.logits.name)
    write_manifest(
        fresh,
        path=fresh / job.manifest.name,
        stage=STAGE,
        settings=job.settings,
        inputs=job.inputs,
        started=started,
        details=details,
    )
    with checkpointing():
        job.manifest.unlink(missing_ok=True)
        for path in (job.logits, job.final, job.manifest):
            (fresh / path.name).replace(path)
        shutil.rmtree(place)


def _print_scores(rows: EvalRows, logits: np.ndarray, probabilities: np.ndarray, temperature: float) -> None:
    if rows.votes is None:
        return
    entries = {"this student": probabilities}
    if temperature != 1:
        entries = {"not calibrated": view_probabilities(logits, 1.0), "this student, calibrated": probabilities}
    if rows.truth is not None:
        entries[TRUTH_NAME] = rows.truth
    print(format_table(scoreboard(entries, rows.votes), f"Test rows of {rows.test_file.name}"))
