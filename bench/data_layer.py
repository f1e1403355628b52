"""Load, de-duplicate and fold synthetic rows of about 1 kB in Kaggle's CSV layout, and print the time and memory.

    python bench/data_layer.py                    # one million rows
    python bench/data_layer.py --rows 20000       # a quick look

The measured steps run in a process of their own, so that its peak memory is theirs alone. The figures are also
written to bench/results/data_layer.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from machine import machine

from arena_distill.runtime.artifacts import git_revision

RESULT = Path(__file__).parent / "results" / "data_layer.json"
TARGET_ROWS, TARGET_SECONDS, TARGET_GB = 1_000_000, 60.0, 4.0
PROMPT_REPEATS = 20  # one row in this many asks an earlier prompt again
BLOCK = 10_000  # rows written at a time
STEPS = ("load", "de-duplicate", "folds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=TARGET_ROWS, help="rows to write and load (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the CSV file in DIR")
    parser.add_argument("--measure", type=Path, metavar="CSV", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "train.csv"
        print(f"writing {options.rows:,} rows to {file} …", flush=True)
        write_rows(file, options.rows)
        size = file.stat().st_size
        child = subprocess.run(
            [sys.executable, __file__, "--measure", str(file)], check=True, stdout=subprocess.PIPE, text=True
        )
    figures = json.loads(child.stdout)
    result = {
        "rows": options.rows,
        "bytes_per_row": round(size / options.rows),
        **figures,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "pyarrow": metadata.version("pyarrow"),
            "numpy": metadata.version("numpy"),
        },
        "git_revision": git_revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    report(result)
    print(f"\nwritten to {RESULT}")
    return 0


def write_rows(file: Path, count: int) -> None:
    """Deterministic rows: JSON lists of one or two turns, quotes and non-ASCII letters in the text, one-hot votes."""
    import numpy as np

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


def measure(file: Path) -> dict[str, object]:
    """Seconds of each step and the peak memory of this process."""
    import pyarrow as pa

    from arena_distill.data.folds import make_folds
    from arena_distill.data.loading import load_labelled
    from arena_distill.data.merging import first_of_each_prompt

    marks = [time.perf_counter()]
    rows = load_labelled(file).rows
    marks.append(time.perf_counter())
    distinct = rows.filter(pa.array(first_of_each_prompt(rows)))
    marks.append(time.perf_counter())
    folds = make_folds(rows)
    marks.append(time.perf_counter())
    assert len(folds.fold) == len(rows)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    seconds = {step: round(end - start, 3) for step, start, end in zip(STEPS, marks, marks[1:], strict=False)}
    return {
        "rows_after_deduplication": len(distinct),
        "seconds": {**seconds, "total": round(marks[-1] - marks[0], 3)},
        "peak_memory_gb": round(kilobytes * 1024 / 1e9, 3),
    }


def report(result: dict[str, Any]) -> None:
    """The table, and whether the targets are reached."""
    rows, seconds, memory = result["rows"], result["seconds"], result["peak_memory_gb"]
    print(f"\n{'step':<14}{'seconds':>9}{'rows/s':>12}")
    for step, value in seconds.items():
        print(f"{step:<14}{value:>9.2f}{rows / max(value, 1e-9):>12,.0f}")
    print(
        f"\n{rows:,} rows of {result['bytes_per_row']:,} bytes, {result['rows_after_deduplication']:,} distinct prompts"
    )
    if rows == TARGET_ROWS:
        for name, value, target in (("s", seconds["total"], TARGET_SECONDS), ("GB", memory, TARGET_GB)):
            print(f"target {target:g} {name}: {'reached' if value <= target else 'NOT REACHED'} ({value:.2f} {name})")
    else:
        print(f"peak memory {memory:.2f} GB; the targets are for {TARGET_ROWS:,} rows")


if __name__ == "__main__":
    raise SystemExit(main())
