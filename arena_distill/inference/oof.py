"""Scoring one fold with the teacher that never saw it: resumable, and the same bits from one job or many shards."""

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

from arena_distill.data.folds import Folds
from arena_distill.data.prompts import Sequences, View
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import row_gaps, score, softmax
from arena_distill.inference.judge import ClassifierJudge, Quantization, in_class_order, load_judge
from arena_distill.inference.last_token import record_last_token
from arena_distill.inference.oof_job import LAST_TOKEN, LOGITS, PROBABILITIES, ROWS, STAGE, OofJob
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.runtime.artifacts import locked, publish, write_manifest
from arena_distill.runtime.errors import InputError


@dataclass(frozen=True)
class Work:
    """What a fold asks of its teacher: sequences in fixed batches, so that shards can take whole batches."""

    rows: Rows  # held-out rows
    sequences: Sequences
    number: np.ndarray  # int64 [V, N]: sequence of each view and row
    views: list[View]
    batches: list[np.ndarray]

    def missing(self, values: np.ndarray, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Those of ``batches`` that have rows without values (NaN) in ``[S, …]``."""
        return [batch for batch in batches if np.isnan(values[batch]).any()]


def score_fold(settings: OofSettings, job: OofJob, base_rows: Rows, folds: Folds) -> bool:
    """Do this job's part of a fold; the last part to finish puts the fold together.

    Returns:
        Whether the fold is complete.

    Raises:
        InputError: the teacher cannot be loaded, or gives logits that are not finite.
        ArenaError: another job does the same part.
    """
    started = time.time()
    job.partial.mkdir(parents=True, exist_ok=True)
    shard, shards = settings.infer_train_shard_id or 0, settings.infer_train_shards
    part = job.partial / f"shard_{shard}_of_{shards}.npy"
    with locked(part):
        judge = load_teacher(settings, job)
        rows = base_rows.filter(pa.array(folds.fold == job.fold))
        views = [View(job.max_length, swap) for swap in ((False, True) if settings.infer_swap else (False,))]
        sequences, number = judge.sequences(rows, views)
        work = Work(rows, sequences, number, views, judge.batches(sequences))
        mine = work.batches[shard::shards]
        hidden = _hidden_size(judge.model) if settings.infer_save_lasttok else 0
        values = _open_part(part, len(sequences), 3 + hidden)
        todo = work.missing(values, mine)
        if len(todo) < len(mine):
            print(f"{job.final}: going on, {len(mine) - len(todo):,} of {len(mine):,} batches are there")
        if hidden:
            with record_last_token(judge.model, values[:, 3:]) as recorder:
                for batch in todo:  # hidden states first: a batch counts as done by its logits
                    recorder.rows = batch
                    judge.score_batches(sequences, [batch], values[:, :3])
        else:
            judge.score_batches(sequences, todo, values)
        values.flush()
    with locked(job.final, wait_seconds=600):
        whole = _collect(job, work, 3 + hidden)
        if whole is None:
            print(f"{job.final}: part {shard} of {shards} is done; others are still to come")
            return False
        if job.partial.is_dir():
            _finish(job, work, whole, len(base_rows), started, shards)
    return True


def load_teacher(settings: OofSettings, job: OofJob) -> ClassifierJudge:
    """The teacher as a judge, computing as it was trained."""
    bits = job.base_bits if settings.infer_quant == "auto" else settings.infer_quant
    quant: Quantization = "nf4" if bits == "nf4" else "none"
    judge = load_judge(
        job.model,
        max_length=job.max_length,
        dtype="bfloat16" if job.bf16 else "float32",
        quant=quant,
        device="auto" if torch.cuda.device_count() > 1 else None,
    )
    judge.max_batch_tokens = settings.infer_batch_tokens
    return judge


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def _open_part(path: Path, sequences: int, width: int) -> np.memmap:
    """Scores so far, float32 ``[S, W]``, NaN where there are none yet; what is written survives the process."""
    if path.is_file():
        try:
            values = np.lib.format.open_memmap(path, mode="r+")
            if values.shape == (sequences, width) and values.dtype == np.float32:
                return values
        except (ValueError, OSError, EOFError):
            pass  # cut off while it was made: nothing is in it
    fresh = path.with_suffix(".new")
    values = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float32, shape=(sequences, width))
    values[:] = np.nan
    values.flush()
    fresh.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")


def _collect(job: OofJob, work: Work, width: int) -> np.ndarray | None:
    """All parts put together, float32 ``[S, W]``; None while some are missing."""
    whole = np.full((len(work.sequences), width), np.nan, dtype=np.float32)
    for path in sorted(job.partial.glob("shard_*_of_*.npy")):
        part = np.load(path, mmap_mode="r")
        if part.shape == whole.shape:
            done = ~np.isnan(part).any(axis=1)
            whole[done] = part[done]
    if not job.partial.is_dir():  # another part was the last, and has put the fold together
        return whole
    return None if np.isnan(whole).any() else whole


def _finish(job: OofJob, work: Work, whole: np.ndarray, n_base: int, started: float, shards: int) -> None:
    by_view = in_class_order(whole[:, :3][work.number], work.views)
    logits = by_view.mean(axis=0, dtype=np.float64).astype(np.float32)
    probabilities = softmax(logits)
    gaps = row_gaps(softmax(by_view[0]), softmax(by_view[-1]))
    index = work.rows["base_idx"].to_numpy()
    directory = job.partial / "model"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    table = pa.table(
        {
            "base_idx": pa.array(index),
            **{f"logit_{name}": logits[:, k] for k, name in enumerate(("model_a", "model_b", "tie"))},
            "swap_gap": gaps,
        }
    )
    pq.write_table(table, directory / ROWS)
    np.save(directory / f"{LOGITS}_fold_{job.fold}.npy", _at_base_rows(logits, index, n_base))
    np.save(directory / f"{PROBABILITIES}_fold_{job.fold}.npy", _at_base_rows(probabilities, index, n_base))
    if whole.shape[1] > 3:
        states = whole[:, 3:][work.number[0]].astype(np.float16)  # of the order as given
        np.save(directory / f"{LAST_TOKEN}_fold_{job.fold}.npy", _at_base_rows(states, index, n_base))
    write_manifest(
        directory,
        stage=STAGE,
        settings=job.settings,
        inputs=job.inputs,
        started=started,
        details={
            "family": job.name,
            "fold": job.fold,
            "teacher": str(job.model),
            "shards": shards,
            "rows": {"held_out": len(index), "base": n_base},
            "sequences": len(work.sequences),
            "metrics": {
                "held_out": score(probabilities, targets(work.rows)).as_dict(),
                "swap_gap": float(gaps.mean()),
            },
        },
    )
    publish(directory, job.final)
    shutil.rmtree(job.partial)


def _at_base_rows(values: np.ndarray, index: np.ndarray, n_base: int) -> np.ndarray:
    """``[n, W]`` at their places among all base rows, ``[N, W]``; NaN where this teacher has no say."""
    if not np.isfinite(values).all():
        raise InputError("a teacher gives values that do not fit 16 bits -> set INFER_SAVE_LASTTOK=0")
    out = np.full((n_base, values.shape[1]), np.nan, dtype=np.float32 if values.dtype != np.float16 else np.float16)
    out[index] = values
    return out
