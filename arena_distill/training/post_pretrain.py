"""Step 1: LoRA or QLoRA post-pretraining of causal LMs on extra preference data, then merging.

Two objectives. ``preference``: the verdict token after prompt, A and B, just as teachers use it, with every pair in
both orders. ``lm``: next tokens of prompt and preferred answer, packed into full sequences. Rows whose prompt stands in
the base file are left out, because every base row is held out from some teacher that starts from this model.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import Trainer, TrainingArguments, set_seed

from arena_distill.data.identity import rows_sha256
from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import merge, shares_prompt
from arena_distill.data.records import Rows
from arena_distill.models.classifier import check_lengths
from arena_distill.runtime.artifacts import publish, write_manifest
from arena_distill.runtime.errors import DataError
from arena_distill.runtime.interruption import checkpointing
from arena_distill.training.arguments import Schedule, logging_steps, training_arguments
from arena_distill.training.datasets import make_dataset
from arena_distill.training.judge_model import JudgeModel, Recipe, make_model
from arena_distill.training.losses import votes_loss
from arena_distill.training.packing import PackedTokens, collate_packed, pack_preferred
from arena_distill.training.post_pretrain_job import BASE_ROWS, STAGE, PostPretrainJob, base_votes
from arena_distill.training.post_pretrain_settings import PostPretrainSettings
from arena_distill.training.processes import is_main_process, locked_by_main, process_count, say, wait_for_all
from arena_distill.training.resumable import complete_saved_model, save_every, sharding, train_resumably
from arena_distill.training.trainer import GroupedTrainer, PreferenceTrainer


def load_rows(settings: PostPretrainSettings) -> tuple[Rows, dict[str, Any]]:
    """Rows to train on, and how many were left out for what reason.

    Raises:
        DataError: a file cannot be used, or no rows are left.
    """
    loaded = [load_labelled(path) for path in settings.data_paths]
    for file in loaded:
        say(file.summary)
    rows = merge(loaded[0].rows.slice(0, 0), [file.rows for file in loaded])
    counts: dict[str, Any] = {"read": len(rows), "prompt_in_base_file": 0, BASE_ROWS: None}
    if (votes := base_votes(settings)) is not None:
        base = load_labelled(votes).rows
        shared = shares_prompt(rows, base)
        counts[BASE_ROWS] = rows_sha256(base)
        counts["prompt_in_base_file"] = int(shared.sum())
        rows = rows.filter(pa.array(~shared))
        say(f"left out {counts['prompt_in_base_file']:,} rows whose prompt stands in {votes}: teachers hold it out")
    else:
        say("note: no base file found (TRAIN_CSV), so no prompt of it was left out; step 3 will not take this model")
    size = settings.postpre_subset_size
    if size and size < len(rows):
        rows = rows.take(np.sort(np.random.default_rng(settings.seed).choice(len(rows), size, replace=False)))
    if not len(rows):
        raise DataError("no rows are left to train on", file=settings.data_paths[0], hint="give other data")
    return rows, counts | {"used": len(rows)}


def post_pretrain(settings: PostPretrainSettings, job: PostPretrainJob, rows: Rows, counts: dict[str, Any]) -> None:
    """Train the adapter of one family; its directory appears whole, with ``manifest.json``.

    Raises:
        ArenaError: bad settings or input, or another job is training the same model.
    """
    started = time.time()
    with locked_by_main(job.final):
        if is_main_process():
            job.open_partial()
            job.work.mkdir(parents=True, exist_ok=True)
        set_seed(settings.seed)
        judge = make_model(job.base, job.tokenizer, _recipe(settings), settings.postpre_fsdp)
        judge.layout.check_limit(settings.postpre_maxlen, "--postpre-maxlen (or POSTPRE_MAXLEN)")
        check_lengths(judge.model, [settings.postpre_maxlen], "--postpre-maxlen (or POSTPRE_MAXLEN)")
        trainer = _preference(settings, job, judge, rows) if judge.labels else _language(settings, job, judge, rows)
        train_resumably(trainer, job.work, str(job.final))
        directory = job.partial / "model"
        trainer.save_model(str(directory))  # every process: under FSDP each holds a part; the main one writes
        if is_main_process():
            complete_saved_model(directory, trainer, judge)
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            write_manifest(
                directory,
                stage=STAGE,
                settings=job.settings,
                inputs=job.inputs,
                started=started,
                details={
                    "family": job.plan.family,
                    "base_model": job.base,
                    "processes": process_count(),
                    "all_settings": settings.dump(),
                    "rows": counts,
                    "metrics": {
                        "first_loss": losses[0] if losses else None,
                        "last_loss": losses[-1] if losses else None,
                        "steps": trainer.state.global_step,
                    },
                },
            )
            with checkpointing():
                publish(directory, job.final)
                shutil.rmtree(job.work)
                shutil.rmtree(job.partial, ignore_errors=True)
            trend = f"; training loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else ""
            print(f"{job.final}: trained in {time.time() - started:.0f} s{trend}")
        wait_for_all()


def _recipe(settings: PostPretrainSettings) -> Recipe:
    return Recipe(
        head="label" if settings.postpre_objective == "preference" else "lm",
        label_words=tuple(settings.postpre_label_words.split(",")),
        lora_r=settings.postpre_lora_r,
        lora_alpha=settings.postpre_lora_alpha,
        lora_dropout=settings.postpre_lora_dropout,
        quant=settings.postpre_quant,
        bf16=settings.postpre_bf16,
    )


def _preference(settings: PostPretrainSettings, job: PostPretrainJob, judge: JudgeModel, rows: Rows) -> Trainer:
    dataset = make_dataset(rows, judge.tokenizer, judge.layout, settings.postpre_maxlen, swap_too=True)
    return PreferenceTrainer(
        model=judge.model,
        args=_arguments(settings, job, len(dataset)),
        train_dataset=dataset,
        processing_class=judge.tokenizer,
        pad_id=judge.tokenizer.pad_token_id,
        loss=votes_loss(),
    )


def _language(settings: PostPretrainSettings, job: PostPretrainJob, judge: JudgeModel, rows: Rows) -> Trainer:
    blocks = PackedTokens(pack_preferred(rows, judge.tokenizer, settings.postpre_maxlen))
    return GroupedTrainer(
        model=judge.model,
        args=_arguments(settings, job, len(blocks)),
        train_dataset=blocks,
        data_collator=collate_packed,
        processing_class=judge.tokenizer,
    )


def _arguments(settings: PostPretrainSettings, job: PostPretrainJob, rows: int) -> TrainingArguments:
    schedule = Schedule(
        epochs=settings.postpre_epochs,
        max_steps=settings.postpre_max_steps,
        batch_size=settings.postpre_per_device_bs,
        grad_accum=settings.postpre_grad_accum,
        learning_rate=settings.postpre_lr,
        warmup_ratio=settings.postpre_warmup_ratio,
        weight_decay=settings.postpre_weight_decay,
        seed=settings.seed,
        bf16=settings.postpre_bf16,
        gradient_checkpointing=settings.postpre_gradient_checkpointing,
        report_to=settings.report_to,
    )
    return training_arguments(
        job.work,
        job.final.name,
        settings.output_dir / "logs",
        schedule,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=settings.postpre_save_steps or save_every(schedule, rows),
        logging_steps=logging_steps(rows, schedule.global_batch),
        **sharding(_recipe(settings), settings.postpre_fsdp, settings.postpre_gradient_checkpointing),
    )
