"""Compare students on a labelled test file that nothing was fitted on: scores, intervals, paired differences."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arena_distill.runtime.errors import run_command


def main() -> None:
    """Parse the command line, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="NAME, or LABEL=NAME1,NAME2,… for a group such as one setting under several seeds; a NAME is a run "
        "(OUTPUT_DIR/model_save/NAME/) or a student's directory; the first is what the others are compared with",
    )  # fmt: skip
    parser.add_argument("--test-csv", type=Path, required=True, help="held-out rows")
    parser.add_argument("--labels-csv", type=Path, required=True, help="the held-out rows' votes, by id")
    parser.add_argument("--truth-parquet", type=Path, help="true probabilities: id, p_model_a, p_model_b, p_tie")
    parser.add_argument("--train-csv", type=Path, help="labelled rows: adds the baselines, fitted on them")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="runs are in its model_save/ (default .)")
    parser.add_argument(
        "--student", default="student_distilbert", metavar="PREFIX",
        help="in a run, take all PREFIX_fold_K, or else PREFIX (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the prompts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of the bootstrap (default %(default)s)")
    parser.add_argument(
        "--batch-rows", type=int, default=32,
        help="rows: budget is this many times a student's length limit (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-swap", dest="swap", action="store_false", help="one order of the answers; default: both, averaged"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()

    # Here and not above: --help must not wait for pyarrow.
    from arena_distill.inference.compared_runs import compare_runs

    report = compare_runs(
        args.runs,
        test_csv=args.test_csv,
        labels_csv=args.labels_csv,
        truth_parquet=args.truth_parquet,
        train_csv=args.train_csv,
        output_dir=args.output_dir,
        student=args.student,
        resamples=args.bootstrap,
        seed=args.seed,
        batch_rows=args.batch_rows,
        swap=args.swap,
        json_file=args.json,
    )
    print(report)


if __name__ == "__main__":
    sys.exit(run_command(main))
