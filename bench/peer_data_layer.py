"""The peer of data_layer.py: the same stage in straightforward pandas, in a process of its own.

Run by bench/data_layer.py in the environment of bench/peers.txt: reads a CSV file in Kaggle's layout, and writes the
seconds of each step, its peak memory and what came of it as JSON. Unlike ours it repairs nothing, counts nothing, says
of no bad cell where it is, and hashes no rows.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import pandas as pd
from memory import peak_mb

TEXTS = ["prompt", "response_a", "response_b"]
VOTES = ["winner_model_a", "winner_model_b", "winner_tie"]
FOLDS, SEED = 5, 42


def main() -> None:
    file, out = sys.argv[1:]
    marks = [time.perf_counter()]
    table = load(file)
    marks.append(time.perf_counter())
    distinct = table.drop_duplicates("key")
    marks.append(time.perf_counter())
    fold = folds(table)
    marks.append(time.perf_counter())
    peak = peak_mb()
    labels = table["label"].value_counts().sort_index().tolist()
    shared = int((fold.groupby(table["key"]).nunique() > 1).sum())
    seconds = [round(end - start, 3) for start, end in pairwise(marks)]
    result = {
        "seconds": {
            **dict(zip(("load", "de-duplicate", "folds"), seconds, strict=True)),
            "total": round(marks[-1] - marks[0], 3),
        },
        "peak_mb": round(peak, 1),
        "rows": len(table),
        "distinct_prompts": len(distinct),
        "labels": labels,
        "prompts_in_two_folds": shared,
        "fold_sizes": fold.value_counts().sort_index().tolist(),
    }
    Path(out).write_text(json.dumps(result))


def load(file: str) -> pd.DataFrame:
    """Turns as lists, the class voted for, and the prompt as folds compare it: lower case, single spaces."""
    table = pd.read_csv(file)
    for name in TEXTS:
        table[name] = table[name].map(json.loads)
    table["label"] = table[VOTES].to_numpy().argmax(axis=1)
    table["key"] = table["prompt"].map(lambda turns: " ".join("\n".join(turn or "" for turn in turns).lower().split()))
    return table.drop(columns=VOTES)


def folds(table: pd.DataFrame) -> pd.Series:
    """Fold of each row: prompts shuffled, and those with the same (first) vote dealt out in turn."""
    prompts = table.groupby("key", sort=False)["label"].first().sample(frac=1, random_state=SEED)
    return table["key"].map(prompts.groupby(prompts).cumcount() % FOLDS)


if __name__ == "__main__":
    main()
