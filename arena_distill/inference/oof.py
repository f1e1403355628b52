"""Scoring one fold with the teacher that never saw it: resumable, and the same bits from one job or many shards."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arena_distill.data.batching import token_budget_batches
from arena_distill.data.folds import Folds
from arena_distill.data.prompts import Sequences, TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import row_gaps, score, softmax
from arena_distill.inference.judge import ClassifierJudge, Quantization, in_class_order, load_judge
from arena_distill.inference.last_token import record_last_token
from arena_distill.inference.oof_job import LAST_TOKEN, LOGITS, PROBABILITIES, ROWS, STAGE, OofJob
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.parts import Parts
from arena_distill.models.classifier import check_lengths, load_tokenizer
from arena_distill.runtime.artifacts import locked, publish, was_restarted, write_manifest
from arena_distill.runtime.errors import InputError
from arena_distill.runtime.interruption import checkpointing


@dataclass(frozen=True)
class Work:
    """What a fold asks of its teacher: sequences in fixed batches, so that shards can take whole batches."""

    rows: Rows  # held-out rows
    sequences: Sequences
    number: np.ndarray  # int64 [V, N]: sequence of each view and row
    views: list[View]
    batches: list[np.ndarray]

    @classmethod
    def of_fold(cls, settings: OofSettings, job: OofJob, base_rows: Rows, folds: Folds) -> Work:
        """Tokenize the fold's rows and cut them into batches; the model is not needed for it."""
        rows = base_rows.filter(pa.array(folds.fold == job.fold))
        views = [View(job.max_length, swap) for swap in ((False, True) if settings.infer_swap else (False,))]
        tokenizer, layout = load_tokenizer(str(job.model)), TextFormat.load(job.model)
        layout.check_limit(job.max_length, "--infer-max-seq-len (or INFER_MAX_SEQ_LEN)")
        sequences, number = assemble(tokenize_rows(rows, tokenizer), layout, views)
        batches = token_budget_batches(sequences.ids.lengths, settings.infer_batch_tokens)
        return cls(rows, sequences, number, views, batches)


def score_fold(settings: OofSettings, job: OofJob, base_rows: Rows, folds: Folds, again: bool) -> bool:
    """Do this job's part of a fold; the last part to finish puts the fold together.

    Args:
        settings: of the stage.
        job: the fold and its teacher.
        base_rows: all base rows in ``base_idx`` order.
        folds: which fold holds out which row.
        again: score anew what is there already.

    Returns:
        Whether the fold is complete.

    Raises:
        InputError: the teacher cannot be loaded, or gives logits that are not finite.
        ArenaError: another job does the same part.
    """
    started = time.time()
    shard, shards = settings.infer_train_shard_id or 0, settings.infer_train_shards
    with locked(job.final.with_name(f"{job.final.name}.shard_{shard}_of_{shards}")):
        work = Work.of_fold(settings, job, base_rows, folds)
        hidden = _hidden_size(job) if settings.infer_save_lasttok else 0
        parts = Parts(job.partial, (len(work.sequences), 3 + hidden))
        if again and not was_restarted():  # else it has been heeded
            parts.forget(shard, shards)
        mine = work.batches[shard::shards]
        done = np.isfinite(parts.together()).all(axis=1)
        todo = [batch for batch in mine if not done[batch].all()]
        if todo:
            if len(todo) < len(mine):
                print(f"{job.final}: going on, {len(mine) - len(todo):,} of {len(mine):,} batches are there")
            _score(settings, job, work, todo, parts.open(shard, shards))
    with locked(job.final, wait_seconds=600):
        if not job.partial.is_dir() and job.is_up_to_date():
            return True  # another part was the last, and has put the fold together
        whole = parts.together()
        if not np.isfinite(whole).all():
            print(f"{job.final}: part {shard} of {shards} is done; others are still to come")
            return False
        _finish(settings, job, work, whole, len(base_rows), started)
    return True


def _score(settings: OofSettings, job: OofJob, work: Work, todo: list[np.ndarray], values: np.memmap) -> None:
    judge = load_teacher(settings, job)
    check_lengths(judge.model, [job.max_length], "--infer-max-seq-len (or INFER_MAX_SEQ_LEN)")
    recording = record_last_token(judge.model, values[:, 3:]) if values.shape[1] > 3 else nullcontext()
    try:
        with recording as recorder:
            begin = recorder.begin if recorder is not None else None
            judge.score_batches(work.sequences, todo, values[:, :3], begin)
    except InputError as error:
        raise InputError(f"{job.model}, fold {job.fold}: {error}") from error
    finally:
        values.flush()


def load_teacher(settings: OofSettings, job: OofJob) -> ClassifierJudge:
    """The teacher as a judge, computing as it was trained."""
    quant: Quantization = "nf4" if job.settings["quant"] == "nf4" else "none"
    judge = load_judge(
        job.model,
        max_length=job.max_length,
        dtype="bfloat16" if job.bf16 else "float32",
        quant=quant,
        device="auto" if torch.cuda.device_count() > 1 else None,
    )
    judge.max_batch_tokens = settings.infer_batch_tokens
    return judge


def _hidden_size(job: OofJob) -> int:
    from transformers import AutoConfig

    from arena_distill.models.adapters import ADAPTER_CONFIG, base_of_adapter

    adapter = (job.model / ADAPTER_CONFIG).is_file()
    config: Any = AutoConfig.from_pretrained(base_of_adapter(job.model) if adapter else job.model)
    return int(config.get_text_config().hidden_size)


def _finish(settings: OofSettings, job: OofJob, work: Work, whole: np.ndarray, n_base: int, started: float) -> None:
    by_view = in_class_order(whole[:, :3][work.number], work.views)
    logits = by_view.mean(axis=0, dtype=np.float64).astype(np.float32)
    probabilities = softmax(logits)
    both = len(work.views) > 1
    gaps = row_gaps(softmax(by_view[0]), softmax(by_view[1])) if both else np.full(len(logits), np.nan)
    index = work.rows["base_idx"].to_numpy()
    directory = job.partial / "model"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    names = ("model_a", "model_b", "tie")
    columns = {f"logit_{name}": logits[:, k] for k, name in enumerate(names)}
    pq.write_table(pa.table({"base_idx": index, **columns, "swap_gap": gaps}), directory / ROWS)
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
            "extra_data": job.extra_data,
            "all_settings": settings.dump(),
            "shards": settings.infer_train_shards,
            "rows": {"held_out": len(index), "base": n_base},
            "sequences": len(work.sequences),
            "metrics": {
                "held_out": score(probabilities, targets(work.rows)).as_dict(),
                "swap_gap": float(gaps.mean()) if both else None,
            },
        },
    )
    with checkpointing():
        publish(directory, job.final)
        shutil.rmtree(job.partial)


def _at_base_rows(values: np.ndarray, index: np.ndarray, n_base: int) -> np.ndarray:
    """``[n, W]`` at their places among all base rows, ``[N, W]``; NaN where this teacher has no say."""
    out = np.full((n_base, values.shape[1]), np.nan, dtype=np.float16 if values.dtype == np.float16 else np.float32)
    out[index] = values
    return out
