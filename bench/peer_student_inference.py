"""The peers of student_inference.py: transformers' pipeline, and CrossEncoder of sentence-transformers.

Run by bench/student_inference.py in the environment of bench/peers.txt. Each model is loaded once for each dtype. Then
the script does the way that a line of standard input names, on as many rows as it says, writes log-probabilities to
DIR/WAY.npy, and answers with its seconds: from strings to scores, without imports and loading.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from sentence_transformers import CrossEncoder
from transformers import pipeline

PIPELINE_BATCH, ENCODER_BATCH = 16, 32  # what a user of the pipeline sets; the default of CrossEncoder.predict
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of a classifier")
    parser.add_argument("rows", help="parquet of prompt, response_a, response_b")
    parser.add_argument("out", type=Path, help="directory for the scores")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr
    rows = pq.read_table(options.rows).to_pydict()
    ways: dict[str, Any] = {}
    for dtype in DTYPES:
        settings = {"dtype": getattr(torch, dtype)}
        judge = pipeline("text-classification", options.model, device="cpu", **settings)
        encoder = CrossEncoder(options.model, device="cpu", model_kwargs=settings)
        separator = judge.tokenizer.sep_token
        ways[f"pipeline {dtype}"] = partial(by_pipeline, judge)
        ways[f"CrossEncoder {dtype}"] = partial(by_cross_encoder, encoder)
    pairs = [
        (f"{prompt} {separator} {a}", b)
        for prompt, a, b in zip(rows["prompt"], rows["response_a"], rows["response_b"], strict=True)
    ]
    for line in sys.stdin:
        way, count = line.strip().split(":")
        started = time.perf_counter()
        log_probabilities = ways[way](pairs[: int(count)])
        seconds = time.perf_counter() - started
        np.save(options.out / f"{way}.npy", log_probabilities)
        print(json.dumps({"seconds": seconds, "threads": torch.get_num_threads()}), file=answers, flush=True)


def by_pipeline(judge: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Log-probabilities ``[N, 3]`` in the order of the labels."""
    inputs = [{"text": first, "text_pair": second} for first, second in pairs]
    scored = judge(inputs, batch_size=PIPELINE_BATCH, top_k=None, truncation=True)
    names = [judge.model.config.id2label[k] for k in range(3)]
    by_label = [{entry["label"]: entry["score"] for entry in row} for row in scored]
    return np.log([[row[name] for name in names] for row in by_label])


def by_cross_encoder(encoder: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Log-probabilities ``[N, 3]``; the encoder gives logits."""
    logits = encoder.predict(pairs, batch_size=ENCODER_BATCH, show_progress_bar=False).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    main()
