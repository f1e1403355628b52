"""The peers of teacher_scoring.py: lm-evaluation-harness, and scoring by the likelihood of whole answers.

Run by bench/teacher_scoring.py in the environment of bench/peers.txt. Loads the model once for each dtype, then does
the way that a line of standard input names, writes what came of it to DIR/WAY.npy, and answers with its seconds.
Tokenizing counts; imports and loading do not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of a causal LM")
    parser.add_argument(
        "rows", help="parquet: question (ends where the verdict begins), prompt, response_a, response_b"
    )
    parser.add_argument("out", type=Path, help="directory for what comes of it")
    parser.add_argument("--choices", nargs=3, required=True, help="continuations whose likelihood is the verdict")
    parser.add_argument("--batch", type=int, default=8, help="rows of a forward pass (default: %(default)s)")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr
    table = pq.read_table(options.rows).to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ways: dict[str, Callable[[dict[str, list[str]]], np.ndarray]] = {}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype)).eval()
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch, add_bos_token=True)
        ways[f"harness {dtype}"] = partial(three_choices, harness, options.choices)
        ways[f"answers {dtype}"] = partial(both_answers, model, tokenizer, options.batch)
    for line in sys.stdin:
        way, count = line.strip().split(":")
        some = {name: values[: int(count)] for name, values in table.items()}
        started = time.perf_counter()
        result = ways[way](some)
        seconds = time.perf_counter() - started
        np.save(options.out / f"{way}.npy", result)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def three_choices(harness: Any, choices: list[str], table: dict[str, list[str]]) -> np.ndarray:
    """Log-likelihood of each choice after each question, ``[N, 3]``, as a multiple-choice task of the harness asks."""
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(question, choice), idx=k)
        for question in table["question"]
        for k, choice in enumerate(choices)
    ]
    said = harness.loglikelihood(requests, disable_tqdm=True)
    return np.array([value for value, _ in said]).reshape(-1, len(choices))


def both_answers(model: Any, tokenizer: Any, batch: int, table: dict[str, list[str]]) -> np.ndarray:
    """Log-likelihood of answers A and B given the prompt, ``[N, 2]``: two forward passes a row."""
    columns = (table["response_a"], table["response_b"])
    return np.column_stack([likelihoods(model, tokenizer, batch, table["prompt"], column) for column in columns])


@torch.inference_mode()
def likelihoods(model: Any, tokenizer: Any, batch: int, prompts: list[str], answers: list[str]) -> np.ndarray:
    """Sum of the log-probabilities of each answer's tokens, ``[N]``; rows in their order, padded to the longest."""
    out: list[float] = []
    for start in range(0, len(prompts), batch):
        asked = tokenizer(prompts[start : start + batch])["input_ids"]
        said = tokenizer(answers[start : start + batch], add_special_tokens=False)["input_ids"]
        both = {"input_ids": [prompt + answer for prompt, answer in zip(asked, said, strict=True)]}
        padded = tokenizer.pad(both, padding_side="right", return_tensors="pt")
        next_tokens = padded["input_ids"][:, 1:]
        log_p = model(**padded).logits[:, :-1].log_softmax(-1)
        chosen = log_p.gather(2, next_tokens[:, :, None])[:, :, 0].float()
        place = torch.arange(1, 1 + next_tokens.shape[1])
        begin = torch.tensor([len(prompt) for prompt in asked])[:, None]
        out += (chosen * ((place >= begin) & padded["attention_mask"][:, 1:].bool())).sum(1).tolist()
    return np.array(out)


if __name__ == "__main__":
    main()
