"""What a second length costs: two lengths, of which 80 % of the rows fit the shorter, beside the longer one alone.

    python bench/tta.py                     # a BERT of 6 layers and 384 dimensions, random weights
    python bench/tta.py --rows 40 --repeats 1 --layers 2        # a quick look

The rows are the sample's test rows. The shorter length is the least that 80 % of them fit; the longer is twice that.
Each repeat times all ways, in another order, in one process; a ratio is of one repeat, and the median is reported.
Tokenizing counts, loading does not. The figures are also written to bench/results/tta.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from arena_distill.data.loading import load_test
from arena_distill.data.prompts import TextFormat, View, assemble, texts_of, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import TinySize, make_tiny_model
from arena_distill.runtime.artifacts import git_revision

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "tta.json"
TEST = REPOSITORY / "data" / "sample" / "test.csv"
SHARE, BOUND = 0.8, 1.35
ROWS, REPEATS, LAYERS = 150, 5, 6
BATCH_TOKENS = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the sample (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of every way (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="depth of the model (default: %(default)s)")
    options = parser.parse_args()
    quiet_libraries()
    rows = load_test(TEST).rows.slice(0, options.rows)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        parameters = write_model(directory, rows, options.layers)
        judge = load_judge(directory)
        judge.max_batch_tokens = BATCH_TOKENS
        result = {"model": {"layers": options.layers, "hidden": 384, "parameters": parameters}}
        result |= measure(judge, rows, options.repeats)
    result |= {
        "bound": BOUND,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "git_revision": git_revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    report(result)
    if (options.rows, options.repeats, options.layers) == (ROWS, REPEATS, LAYERS):
        RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        print(f"written to {RESULT}")
    return 0 if result["ratio"]["two_to_one"]["median"] < BOUND else 1


def write_model(directory: Path, rows: Rows, layers: int) -> int:
    """A judge of random weights, of the size of a small sentence encoder."""
    texts = [text for column in texts_of(rows) for text in column.to_pylist()]
    size = TinySize(hidden=384, layers=layers, heads=12, vocabulary=4000)
    parameters = make_tiny_model("bert", texts, directory, size, seed=1)
    TextFormat.for_tokenizer(load_tokenizer(str(directory)), token_types=3).save(directory)
    return parameters


def measure(judge: ClassifierJudge, rows: Rows, repeats: int) -> dict[str, Any]:
    """Seconds of each way, and how they compare within a repeat."""
    tokens = tokenize_rows(rows, judge.tokenizer)
    whole = tokens.lengths.sum(axis=1) + judge.layout.overhead
    short = int(np.sort(whole)[int(np.ceil(SHARE * len(rows))) - 1])
    lengths = [short, 2 * short]
    views = {"short": [View(short)], "one": [View(lengths[1])], "two": [View(length) for length in lengths]}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "one": lambda: judge.view_logits(rows, views["one"]),
        "two": lambda: judge.view_logits(rows, views["two"]),
        "naive": lambda: np.concatenate([judge.view_logits(rows, views[name]) for name in ("short", "one")]),
    }
    judge.view_logits(rows.slice(0, 16), views["two"])  # warm-up: buffers, and code that is made at the first call
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        for name in np.roll(list(ways), repeat):
            started = time.perf_counter()
            logits[name] = ways[name]()
            seconds[name].append(time.perf_counter() - started)
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in seconds.items()))
    count = {name: assemble(tokens, judge.layout, views[name])[0].ids.lengths for name in views}
    return {
        "rows": len(rows),
        "lengths": lengths,
        "share_that_fits": {str(length): round(float((whole <= length).mean()), 4) for length in lengths},
        "sequences": {
            "one": len(count["one"]),
            "two": len(count["two"]),
            "naive": len(count["one"]) + len(count["short"]),
        },
        "tokens": {
            "one": int(count["one"].sum()),
            "two": int(count["two"].sum()),
            "naive": int(count["one"].sum() + count["short"].sum()),
        },
        "batch_tokens": BATCH_TOKENS,
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "ratio": {"two_to_one": ratio(seconds, "two", "one"), "naive_to_two": ratio(seconds, "naive", "two")},
        "largest_logit_difference_to_naive": float(np.abs(logits["two"] - logits["naive"]).max()),
    }


def ratio(seconds: dict[str, list[float]], first: str, second: str) -> dict[str, float]:
    """Median, least and largest of the repeats' ratios."""
    values = np.divide(seconds[first], seconds[second])
    return {name: round(float(of(values)), 3) for name, of in (("median", np.median), ("min", np.min), ("max", np.max))}


def report(result: dict[str, Any]) -> None:
    """The table, and whether the bound is kept."""
    short, long = result["lengths"]
    share, weights = result["share_that_fits"][str(short)], result["model"]["parameters"]
    print(f"\n{result['rows']} rows, {share:.0%} of which fit {short} tokens; {weights:,} parameters")
    print(f"{'':<34}{'sequences':>10}{'tokens':>10}{'seconds':>10}")
    names = {"one": f"{long} alone", "two": f"{short} and {long}", "naive": "the same, each in full"}
    for way, name in names.items():
        median = float(np.median(result["seconds"][way]))
        print(f"{name:<34}{result['sequences'][way]:>10,}{result['tokens'][way]:>10,}{median:>10.2f}")
    two, naive = result["ratio"]["two_to_one"], result["ratio"]["naive_to_two"]
    kept = "kept" if two["median"] < BOUND else "NOT KEPT"
    print(f"two lengths / one: {two['median']:.2f} ({two['min']:.2f} to {two['max']:.2f}); bound {BOUND}: {kept}")
    print(f"each in full / two lengths: {naive['median']:.2f} ({naive['min']:.2f} to {naive['max']:.2f})")
    print(f"largest difference of a logit to the naive way: {result['largest_logit_difference_to_naive']:.1e}")


if __name__ == "__main__":
    raise SystemExit(main())
