"""Loading, de-duplicating and folding votes in Kaggle's CSV layout: time and memory, beside straightforward pandas.

    python bench/data_layer.py                    # a million rows of about 1 kB
    python bench/data_layer.py --rows 5000000     # a quarter of an hour, 15 GB of disk; written to a file of its own
    python bench/data_layer.py --quick

Rows are synthetic: JSON lists of one or two turns, quotes and letters beyond ASCII in the text, one row in twenty asks
an earlier prompt again. Every measurement is a process of its own, so that its peak memory (that of the interpreter and
its libraries included) is its alone; ours and pandas take turns. pandas reads the file, parses each cell, compares
prompts in lower case with single spaces, and deals distinct prompts out to folds by vote; it neither repairs nor
locates what is wrong with a file, nor hashes rows, as ours does.

Equality: as many rows of each vote, as many distinct prompts, and no prompt in two folds.

What it does not show: Parquet and JSON lines, slower disks (the file was just written, so it comes from memory).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, Timed, arguments, finish, measure, peer_version, run_peer
from memory import peak_mb

ROWS, QUICK_ROWS = 1_000_000, 10_000
SPEED_TARGET, MEMORY_TARGET = 3.0, 2.0
REPEATS = 2
PART = 5  # the smaller file, to see how time and memory grow, has this share of the rows
PROMPT_REPEATS = 20  # one row in this many asks an earlier prompt again
BLOCK = 10_000  # rows written at a time
FREE_SHARE = 0.9  # of the free memory that pandas may be expected to take
STEPS = ("load", "de-duplicate", "folds")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the larger file (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the CSV files in DIR")
    parser.add_argument("--measure", type=Path, metavar="CSV", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(stage(options.measure)))
        return 0
    count = QUICK_ROWS if options.quick else options.rows
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        result = compare(directory, count, 1 if options.quick else REPEATS)
    result["pandas"]["version"] = peer_version("pandas")
    name = "data_layer" if count in (ROWS, QUICK_ROWS) else f"data_layer_{count}"
    finish(name, {"measured": result}, table(result), options.quick)
    return 0


def compare(directory: Path, count: int, repeats: int) -> dict[str, Any]:
    """Ours and pandas on a file and on a part of it, taking turns: the first to touch memory pays for it."""
    result: dict[str, Any] = {"ours": {}, "pandas": {}}
    for rows in (count // PART, count):
        file = directory / f"{rows}.csv"
        print(f"writing {rows:,} rows …", flush=True)
        write_rows(file, rows)
        result["bytes_per_row"] = round(file.stat().st_size / rows)
        ways: dict[str, Callable[[], Timed]] = {"ours": partial(run_ours, file), "pandas": partial(run_pandas, file)}
        needed = result["pandas"].get(str(rows // PART), {}).get("peak_mb", 0) * PART
        if needed > FREE_SHARE * free_mb():
            result["pandas"][str(rows)] = f"would take about {needed / 1e3:.0f} GB"
            del ways["pandas"]
        measured = measure(ways, repeats, warm_up=lambda: None)
        for way, figures in measured.results.items():
            result[way][str(rows)] = figures | {"total_seconds": [round(s, 3) for s in measured.seconds[way]]}
        if len(ways) > 1:
            result.setdefault("ratio", {})[str(rows)] = measured.ratios("pandas", "ours")
        if directory.name.startswith("tmp"):
            file.unlink()
    return result


def run_ours(file: Path) -> Timed:
    """One run of ours in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(file)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return _timed(child.stdout)


def run_pandas(file: Path) -> Timed:
    """One run of pandas in a process of its own."""
    out = file.with_suffix(".json")
    run_peer("peer_data_layer.py", file, out)
    return _timed(out.read_text())


def _timed(figures: str) -> Timed:
    result: dict[str, Any] = json.loads(figures)
    return Timed(result, result["seconds"]["total"])


def free_mb() -> float:
    """Memory that a new process may take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_rows(file: Path, count: int) -> None:
    """Deterministic rows: JSON lists of one or two turns, quotes and non-ASCII letters in the text, one-hot votes."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in ("ka", "lo", "mé", "ру", "st", "wi") for b in ("n", "ra", "td", "e’s ", "x ")])
    text = "".join(syllables[rng.integers(len(syllables), size=200_000)])
    last = len(text) - 1000

    def cell(*turns: str | None) -> str:
        return '"' + json.dumps(turns, ensure_ascii=False).replace('"', '""') + '"'

    with file.open("w", encoding="utf-8", newline="") as stream:
        stream.write("id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n")
        for start in range(0, count, BLOCK):
            rows = np.arange(start, min(start + BLOCK, count))
            places = rng.integers(last, size=(len(rows), 2)).tolist()
            sizes = rng.integers(20, 680, size=(len(rows), 2)).tolist()
            votes = rng.choice(["1,0,0", "0,1,0", "0,0,1"], p=[0.35, 0.35, 0.3], size=len(rows)).tolist()
            repeat = rng.random(len(rows)) < 1 / PROMPT_REPEATS
            asked = np.where(repeat, rng.integers(0, start + 1, size=len(rows)), rows).tolist()
            for n, (a, b), (size_a, size_b), vote, question in zip(
                rows.tolist(), places, sizes, votes, asked, strict=True
            ):
                at = question * 7919 % last
                prompt = cell(f'Question {question}, say "no" twice:\n{text[at : at + 60]}')
                answer_a = cell(text[a : a + size_a] if n % 50 else None)
                answer_b = cell(text[b : b + size_b] + '\n"quoted"')
                stream.write(f"{n},model-x,model-y,{prompt},{answer_a},{answer_b},{vote}\n")


def stage(file: Path) -> dict[str, Any]:
    """Ours, in this process: seconds of each step, peak memory, and what came of it."""
    import pyarrow as pa

    from arena_distill.data.folds import make_folds
    from arena_distill.data.loading import load_labelled
    from arena_distill.data.merging import first_of_each_prompt, keep_rows

    pa.array([])  # imports pandas where it is installed: like the peer's own imports, before the clock starts
    marks = [time.perf_counter()]
    rows = load_labelled(file).rows
    marks.append(time.perf_counter())
    distinct = keep_rows(rows, first_of_each_prompt(rows))
    marks.append(time.perf_counter())
    folds = make_folds(rows)
    marks.append(time.perf_counter())
    peak = peak_mb()
    pairs = np.unique(np.stack([rows["prompt_hash"].to_numpy(), folds.fold.astype(np.uint64)]), axis=1)
    seconds = {step: round(end - start, 3) for step, start, end in zip(STEPS, marks, marks[1:], strict=False)}
    return {
        "seconds": {**seconds, "total": round(marks[-1] - marks[0], 3)},
        "peak_mb": round(peak, 1),
        "rows": len(rows),
        "distinct_prompts": len(distinct),
        "labels": np.bincount(rows["label"].to_numpy()).tolist(),
        "prompts_in_two_folds": int((np.unique(pairs[0], return_counts=True)[1] > 1).sum()),
        "fold_sizes": np.bincount(folds.fold).tolist(),
    }


def table(result: dict[str, Any]) -> list[Row]:
    """Speed and memory beside pandas, and how our memory grows."""
    part, count = (int(rows) for rows in result["ours"])
    ours, theirs = result["ours"][str(count)], result["pandas"][str(count)]
    compared = count
    note = ""
    if isinstance(theirs, str):
        note = f"pandas {theirs} at {count:,} rows; "
        compared = part
        ours, theirs = result["ours"][str(part)], result["pandas"][str(part)]
    alike = all(ours[key] == theirs[key] for key in ("rows", "labels", "distinct_prompts"))
    equal = alike and not ours["prompts_in_two_folds"] and not theirs["prompts_in_two_folds"]
    small, large = result["ours"][str(part)], result["ours"][str(count)]
    growth = (large["peak_mb"] / small["peak_mb"]) / (count / part)
    return [
        Row(
            f"data layer, {compared:,} rows: time",
            "pandas",
            result["ratio"][str(compared)]["median"],
            SPEED_TARGET,
            equal,
            f"{note}{_seconds(theirs):.1f} s against {_seconds(ours):.1f} s, {compared / _seconds(ours):,.0f} rows/s; "
            f"{ours['distinct_prompts']:,} distinct prompts, {ours['prompts_in_two_folds']} in two folds",
        ),
        Row(
            f"data layer, {compared:,} rows: memory",
            "pandas",
            theirs["peak_mb"] / ours["peak_mb"],
            MEMORY_TARGET,
            equal,
            f"{note}peaks of {theirs['peak_mb'] / 1e3:.2f} GB against {ours['peak_mb'] / 1e3:.2f} GB",
        ),
        Row(
            f"data layer: memory of {count:,} rows by that of {part:,}, by rows",
            "-",
            growth,
            1.0,
            not large["prompts_in_two_folds"],
            f"{large['peak_mb'] / 1e3:.2f} GB and {small['peak_mb'] / 1e3:.2f} GB; "
            f"{_seconds(large):.1f} s and {_seconds(small):.1f} s",
            at_most=True,
        ),
    ]


def _seconds(figures: dict[str, Any]) -> float:
    return float(np.median(figures["total_seconds"]))


if __name__ == "__main__":
    raise SystemExit(main())
