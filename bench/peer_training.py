"""The peer of training.py: Hugging Face's Trainer as it comes, random batches padded to their longest row.

Run by bench/training.py in the environment of bench/peers.txt. A line of standard input says on how many rows, and
whether with dropout (128:1); the answer has the seconds of ``Trainer.train`` and the loss of every step. Each run
starts from the model as saved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of a sequence classifier")
    parser.add_argument("rows", help="parquet: input_ids, perhaps token_type_ids, label")
    parser.add_argument("work", type=Path, help="directory for the Trainer")
    parser.add_argument("recipe", type=json.loads, help="JSON: batch_rows, epochs, learning_rate, warmup, lora_rank …")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr
    rows = pq.read_table(options.rows).to_pylist()
    for line in sys.stdin:
        count, dropout = map(int, line.split(":"))
        answer = train(options.model, rows[:count], options.work, options.recipe, bool(dropout))
        print(json.dumps(answer), file=answers, flush=True)


def train(base: str, rows: list[dict[str, Any]], work: Path, recipe: dict[str, Any], dropout: bool) -> dict[str, Any]:
    set_seed(recipe["seed"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = Trainer(
        model=load_model(base, recipe, dropout),
        args=TrainingArguments(
            output_dir=str(work),
            num_train_epochs=recipe["epochs"],
            per_device_train_batch_size=recipe["batch_rows"],
            learning_rate=recipe["learning_rate"],
            warmup_steps=recipe["warmup"],
            weight_decay=recipe["weight_decay"],
            bf16=recipe["bf16"],
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            seed=recipe["seed"],
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def load_model(base: str, recipe: dict[str, Any], dropout: bool) -> Any:
    rank = recipe["lora_rank"]
    dtype = torch.bfloat16 if rank and recipe["bf16"] else torch.float32
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, dtype=dtype)
    if rank:
        targets = recipe["lora_targets"]
        model = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=targets)
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # as ours: what trains needs all its bits
    model.config.use_cache = False
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return model


if __name__ == "__main__":
    main()
