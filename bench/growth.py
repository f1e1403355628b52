"""How cost grows with rows, length, folds and processes; a plot for each question.

    python bench/growth.py
    python bench/growth.py --quick

- Rows, 1,000 to 100,000: the data layer (load, de-duplicate, fold) as in data_layer.py; seconds and peak memory.
- Length, 128 to 2,048 tokens: a student of 22M parameters scores rows that are all alike, as many tokens of each
  length; microseconds a token. Attention grows with the length, all else does not.
- Folds, 1 to 5: `main.py --mode student-train --cv-fold-idx K`, one fold after the other on one machine, with a tiny
  student; seconds until that many folds are done. A stand-in for job_distill.sh and step 5, whose folds are as
  independent of one another.
- Processes, 1 to 2: two processes that share the batches of the same rows, each with one core, as shards of step 4 do;
  beside one process with one core, and one with two threads.

Models compute in bfloat16, or in float32 where a CPU is faster so.

Writes bench/results/growth_QUESTION.svg. Equality: shards give the very logits that one process gives.

What it does not show: clusters, where folds and shards run at the same time on machines of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import REPOSITORY, RESULTS, Row, arguments, finish, measure

COUNTS = (1_000, 25_000, 50_000, 75_000, 100_000)
LENGTHS = (128, 256, 512, 1024, 2048)
TOKENS, LENGTH_REPEATS = 24_576, 3  # of each length
FOLDS, FOLD_STEPS = 5, 20
SHARD_ROWS = 192
CSS = """
svg { --ink: #1a2330; --soft: #566273; --line: #dde2e9; --strong-line: #aab4c2; --accent: #0a5fb4; background: #fff;
  font-family: system-ui, sans-serif; }
text { font-size: 12.5px; fill: var(--soft); } .name { fill: var(--ink); } .grid { stroke: var(--line); }
.axis { stroke: var(--strong-line); } .line { fill: none; stroke: var(--accent); stroke-width: 1.75; }
.small { fill: var(--accent); } .s1 .line { stroke: #8a4300; } .s1 .small { fill: #8a4300; }
.s2 .line { stroke: #888; } .s2 .small { fill: #888; }
"""
Answer = tuple[dict[str, Any], Row]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--shard", nargs=4, metavar=("NUMBER", "OF", "DIR", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shard:
        number, of, directory, out = options.shard
        return score_shard(int(number), int(of), Path(directory), Path(out))
    questions: dict[str, Callable[[Path, bool], Answer]] = {
        "rows": by_rows,
        "length": by_length,
        "folds": by_folds,
        "processes": by_processes,
    }
    measured, rows = {}, []
    for name, question in questions.items():
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            measured[name], row = question(Path(temporary), options.quick)
        rows.append(row)
        print(f"{time.perf_counter() - started:.0f} s: {row.detail}", flush=True)
        if not options.quick:
            draw(name, measured[name]["plot"])
    finish("growth", {"measured": measured}, rows, options.quick)
    return 0


def by_rows(directory: Path, quick: bool) -> Answer:
    """The data layer on files of several sizes."""
    from data_layer import measure_ours, write_rows

    found = {}
    for count in COUNTS[:2] if quick else COUNTS:
        file = directory / f"{count}.csv"
        write_rows(file, count)
        found[count] = min((measure_ours(file) for _ in range(2)), key=lambda figures: figures["seconds"]["total"])
        file.unlink()
    seconds = {count: figures["seconds"]["total"] for count, figures in found.items()}
    memory = {count: figures["peak_mb"] for count, figures in found.items()}
    few, many = min(found), max(found)
    growth = (seconds[many] / seconds[few]) / (many / few)
    return {
        "seconds": seconds,
        "peak_mb": memory,
        "plot": plot(
            "thousand rows", "seconds", beside_proportion({count / 1000: value for count, value in seconds.items()}),
            "Seconds of the data layer by rows",
        ),
    }, Row(
        f"growth: time of the data layer, {few:,} to {many:,} rows, by rows", "-", growth, None, True,
        f"{seconds[few]:.2f} s to {seconds[many]:.2f} s; {memory[few]:,.0f} MB to {memory[many]:,.0f} MB",
    )  # fmt: skip


def by_length(directory: Path, quick: bool) -> Answer:
    """Time of a token in rows of several lengths."""
    from models import fastest_dtype, write_encoder
    from texts import chat_rows, cut_rows

    from arena_distill.inference.judge import load_judge

    lengths = LENGTHS[:2] if quick else LENGTHS
    write_encoder(directory, layers=2 if quick else 6, positions=max(LENGTHS))
    judge = load_judge(directory, max_length=max(LENGTHS), dtype=fastest_dtype())
    judge.max_batch_tokens = 4096
    total = 2048 if quick else TOKENS
    ways, tokens = {}, {}
    for length in lengths:
        longer = chat_rows(total // length, median=1.2 * length, sigma=0, longest=10**6, tokenizer=judge.tokenizer)
        rows = cut_rows(longer, judge.tokenizer, judge.layout, length)
        tokens[length] = int(tokens_of(judge, rows).sum())
        ways[str(length)] = lambda rows=rows: judge.logits(rows)
    measured = measure(ways, 1 if quick else LENGTH_REPEATS, quiet=True)
    micro = {length: 1e6 * min(measured.seconds[str(length)]) / tokens[length] for length in lengths}
    short, long = min(micro), max(micro)
    return {
        "microseconds_a_token": {length: round(value, 2) for length, value in micro.items()},
        "tokens": tokens,
        "plot": plot(
            "tokens a row", "microseconds a token",
            [("measured", list(map(list, micro.items()))), ("constant", [[short, micro[short]], [long, micro[short]]])],
            "Microseconds of student inference a token by length",
        ),
    }, Row(
        f"growth: time of a token in student inference, {short:,} to {long:,} tokens", "-",
        micro[long] / micro[short], None, True,
        ", ".join(f"{length:,}: {value:.0f} µs" for length, value in micro.items()),
    )  # fmt: skip


def tokens_of(judge: Any, rows: Any) -> np.ndarray:
    """Tokens of each row as the judge reads it."""
    from arena_distill.data.prompts import View, assemble, tokenize_rows

    sequences, number = assemble(tokenize_rows(rows, judge.tokenizer), judge.layout, [View(judge.max_length)])
    return np.asarray(sequences.ids.lengths[number[0]])


def by_folds(directory: Path, quick: bool) -> Answer:
    """Time until so many folds' students are trained, one after the other."""
    from models import write_encoder

    write_encoder(directory / "backbone", layers=1, vocabulary=5000)
    command = [sys.executable, "main.py", "--mode", "student-train", "--train-csv", "data/sample/train.csv"]
    command += ["--student-model", str(directory / "backbone"), "--output-dir", str(directory / "out")]
    command += ["--student-max-steps", str(2 if quick else FOLD_STEPS), "--student-max-length", "128"]
    environment = {name: os.environ[name] for name in ("HOME", "PATH", "OMP_NUM_THREADS") if name in os.environ}
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    for fold in range(1 if quick else FOLDS):
        subprocess.run(
            [*command, "--cv-num-folds", str(FOLDS), "--cv-fold-idx", str(fold)],
            cwd=REPOSITORY, env=environment | {"HF_HUB_OFFLINE": "1"}, check=True, capture_output=True,
        )  # fmt: skip
        seconds[fold + 1] = round(time.perf_counter() - started, 2)
    last = max(seconds)
    return {
        "seconds": seconds,
        "plot": plot(
            "folds", "seconds", beside_proportion(seconds),
            "Seconds until the students of so many folds are trained",
        ),
    }, Row(
        f"growth: time of {last} folds' students, by folds", "-", seconds[last] / seconds[1] / last, None, True,
        ", ".join(f"{fold}: {value:.1f} s" for fold, value in seconds.items()),
    )  # fmt: skip


def by_processes(directory: Path, quick: bool) -> Answer:
    """One process and two, each with a core of its own."""
    from models import write_encoder

    write_encoder(directory, layers=2 if quick else 6, positions=1024)
    (directory / "rows.json").write_text(json.dumps(32 if quick else SHARD_ROWS))
    setups = {"1 process, 1 thread": (1, 1), "2 processes, 1 thread each": (2, 1), "1 process, 2 threads": (1, 2)}
    seconds: dict[str, float] = {}
    logits: dict[str, np.ndarray] = {}
    for name, (processes, threads) in setups.items():
        runs = [shards(processes, threads, directory) for _ in range(1 if quick else 2)]
        seconds[name] = round(min(taken for taken, _ in runs), 3)
        logits[name] = runs[0][1]
    one, two, threads_two = seconds.values()
    same = np.array_equal(logits["1 process, 1 thread"], logits["2 processes, 1 thread each"])
    apart = np.abs(logits["1 process, 1 thread"] - logits["1 process, 2 threads"]).max()
    series = [
        (name, [[1, 1.0], [2, value]])
        for name, value in (("processes", one / two), ("threads", one / threads_two), ("in proportion", 2.0))
    ]
    return {
        "seconds": seconds,
        "same_bits": same,
        "largest_difference_by_threads": float(apart),
        "plot": plot("cores", "times as fast as one", series, "Speed of scoring by processes and by threads"),
    }, Row(
        "growth: scoring by two processes of one core, beside one", "-", one / two, None, same,
        ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
    )  # fmt: skip


def shards(processes: int, threads: int, directory: Path) -> tuple[float, np.ndarray]:
    """Seconds until all shards are done, loading not counted, and the logits put together."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    outs = [directory / f"shard_{number}.npy" for number in range(processes)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--shard", str(number), str(processes), str(directory), str(out)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        for number, out in enumerate(outs)
    ]  # fmt: skip
    for child in children:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise SystemExit(f"a shard ended with exit code {child.wait()}")
    started = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    seconds = time.perf_counter() - started
    for child in children:
        child.wait()
    logits = np.stack([np.load(out) for out in outs])
    return seconds, np.nansum(logits, axis=0)


def score_shard(number: int, of: int, directory: Path, out: Path) -> int:
    """Every so manieth batch of the rows, when told to begin."""
    from models import fastest_dtype
    from texts import chat_rows

    from arena_distill.data.batching import token_budget_batches
    from arena_distill.data.prompts import View, assemble, tokenize_rows
    from arena_distill.inference.judge import load_judge

    judge = load_judge(directory, max_length=1024, dtype=fastest_dtype())
    rows = chat_rows(json.loads((directory / "rows.json").read_text()), tokenizer=judge.tokenizer)
    sequences, _ = assemble(tokenize_rows(rows, judge.tokenizer), judge.layout, [View(judge.max_length)])
    batches = token_budget_batches(sequences.ids.lengths, 4096)
    logits = np.full((len(sequences), 3), np.nan, np.float32)
    judge.score(sequences.take(batches[-1][-2:]))  # warm-up
    print("ready", flush=True)
    sys.stdin.readline()
    judge.score_batches(sequences, batches[number::of], logits)
    print("done", flush=True)
    np.save(out, logits)
    return 0


def beside_proportion(values: dict[Any, float]) -> list[tuple[str, list[list[float]]]]:
    """A line for the values, and a straight one from nothing to the last: what bends below it grows faster."""
    last = max(values)
    straight = [[0, 0], [last, values[last]]]
    return [("measured", [[x, value] for x, value in values.items()]), ("in proportion", straight)]


def plot(x_title: str, y_title: str, series: list[tuple[str, list[list[float]]]], label: str) -> dict[str, Any]:
    """What ``draw`` draws."""
    return {"x_title": x_title, "y_title": y_title, "series": series, "label": label}


def draw(name: str, what: dict[str, Any]) -> None:
    """A file of its own, with the lines of the report's charts."""
    from arena_distill.report.charts import lines

    svg = str(lines(what["series"], what["x_title"], what["y_title"], what["label"]))
    head, _, body = svg.partition(">")
    head = re.sub(r' viewBox="[^"]*"', ' viewBox="-8 -24 460 280"', head)  # room for names at the ends of lines
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="690" height="420" ', 1)
    (RESULTS / f"growth_{name}.svg").write_text(f"{head}><style>{CSS}</style>{body}\n", "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
