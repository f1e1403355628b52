"""Print held-out scores of the baselines, and of any submissions beside them, for one train/test pair."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arena_distill.runtime.errors import run_command


def main() -> None:
    """Parse the command line, load, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="labelled rows that the baselines are fitted on")
    parser.add_argument("--test", type=Path, required=True, help="held-out rows")
    parser.add_argument("--labels", type=Path, required=True, help="the held-out rows' votes, by id")
    parser.add_argument(
        "--submission", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help="predictions to score"
    )
    parser.add_argument("--truth", type=Path, help="Parquet of true probabilities: id, p_model_a, p_model_b, p_tie")
    args = parser.parse_args()

    # Here and not above: --help must not wait for scikit-learn.
    from arena_distill.data.loading import load_labelled, load_labels, load_test
    from arena_distill.evaluation.scoreboard import format_table, held_out_scores, read_truth
    from arena_distill.evaluation.submission import read_submission

    train, test = load_labelled(args.train).rows, load_test(args.test).rows
    ids = test["id"].to_pylist()
    submissions = {str(path): read_submission(path, expected_ids=ids)[1] for path in args.submission}
    truth = read_truth(args.truth, ids) if args.truth else None
    targets = load_labels(args.labels, ids)
    print(format_table(held_out_scores(train, test, targets, submissions, truth)))


if __name__ == "__main__":
    sys.exit(run_command(main))
