"""What distillation must not do: label rows with teachers that were trained on them. Here such labels are made, to show
what harm they do.

    python bench/leaked_labels.py --out-dir /tmp/leaked
    DISTILL_TEACHERS='/tmp/leaked/*/*.npy' FOLD=0 RUN=leaked bash job_distill.sh

Every teacher that step 3 left speaks of exactly the base rows that it did train on (NaN elsewhere), both orders
averaged: the opposite of step 4. Compare the students with `scripts/compare_runs.py` on a test file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from arena_distill.data.find_file import find_file
from arena_distill.data.folds import load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import View
from arena_distill.data.records import targets
from arena_distill.evaluation.metrics import kaggle_log_loss, softmax
from arena_distill.inference.judge import load_judge
from arena_distill.models.quiet import quiet_libraries
from arena_distill.runtime.run_settings import FoldedSettings
from arena_distill.runtime.settings import parse_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out-dir", type=Path, required=True, help="gets NAME_fold_K/teacher_logits_fold_K.npy")
    options = parser.parse_args()
    settings = parse_settings(FoldedSettings, [], program="leaked_labels.py", description="")  # RUN, TRAIN_CSV, PROFILE
    quiet_libraries()
    rows = load_labelled(find_file(settings.train_csv, "train", "TRAIN_CSV")).rows
    folds = load_folds(settings.folds_path)
    folds.check(rows, settings.folds_path)
    votes = targets(rows)
    for directory in sorted(settings.model_save.glob("*_fold_*")):
        manifest = directory / "manifest.json"
        record = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
        if record.get("stage") != "step3_train_teachers":
            continue
        fold, length = record["fold"], record["all_settings"]["teacher_maxlen"]
        judge = load_judge(directory, max_length=length)
        seen = np.flatnonzero(folds.fold != fold)
        logits = np.full((len(rows), 3), np.nan, dtype=np.float32)
        logits[seen] = judge.view_logits(rows.take(seen), [View(length), View(length, swap=True)]).mean(axis=0)
        path = options.out_dir / f"{record['family']}_fold_{fold}" / f"teacher_logits_fold_{fold}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, logits)
        loss = kaggle_log_loss(softmax(logits[seen]), votes[seen])
        print(f"{path}: {len(seen):,} rows that this teacher was trained on, log loss {loss:.4f}")


if __name__ == "__main__":
    main()
