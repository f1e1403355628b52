"""Next-token pretraining of a tiny checkpoint: with random weights a language model has nothing to be tuned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.models.classifier import load_tokenizer, pad_batch
from arena_distill.models.instructions import has_bfloat16_products
from arena_distill.runtime.progress import Progress
from arena_distill.training.trainer import LengthGroupedSampler

BATCH, MAX_LENGTH, PEAK_RATE, WARMUP_STEPS = 16, 256, 2e-3, 50
IGNORED = -100  # label that the loss leaves out


def pretrain_tiny(directory: Path, rows: Rows, epochs: int, seed: int) -> float:
    """Train all weights of the causal LM in ``directory`` on the texts of ``rows``; votes are not looked at.

    Matrix products are of bfloat16 where the CPU has instructions for them, which takes two thirds of the time.

    Args:
        directory: checkpoint with tokenizer; its weights are replaced.
        rows: canonical rows, read as prompt, A and B in one sequence.
        epochs: passes over the rows.
        seed: of the order.

    Returns:
        Mean loss of the last epoch, nats a token.
    """
    tokenizer = load_tokenizer(str(directory))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    layout = TextFormat.for_tokenizer(tokenizer)
    sequences, _ = assemble(tokenize_rows(rows, tokenizer), layout, [View(MAX_LENGTH)])
    sampler = LengthGroupedSampler(sequences.ids.lengths, BATCH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.1, fused=True)
    steps = epochs * -(-len(sampler) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / steps)
    )
    losses: list[float] = []
    half = has_bfloat16_products()
    with Progress("pretraining", epochs * len(sampler)) as progress:
        for sampler.epoch in range(epochs):
            order, losses = np.fromiter(sampler, np.int64), []
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                inputs = pad_batch(sequences, batch, tokenizer.pad_token_id)
                labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(**inputs, labels=labels).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                progress.update(len(batch), int(inputs["attention_mask"].sum()))
    model.save_pretrained(directory)
    return float(np.mean(losses))
