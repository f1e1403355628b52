"""Ensemble the folds' submissions of one or several runs into OUT, weighted by what each fold says of held-out rows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from arena_distill.runtime.errors import run_command


def main() -> None:
    """Parse the command line, weigh, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the submission to write")
    parser.add_argument(
        "--run", action="append", required=True, metavar="RUN", help="run name; several: give the flag again"
    )
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR", help="where model_save/ and sub/ are")
    parser.add_argument(
        "--weights",
        choices=["auto", "equal", "inverse", "optimal"],
        default="auto",
        help="auto: folds by inverse held-out log loss, several runs by the optimum on their common rows",
    )
    parser.add_argument(
        "--space", choices=["mean", "log"], default="mean", help="average probabilities or their logarithms"
    )
    parser.add_argument("--student", default="student_distilbert", metavar="NAME", help="model_save/RUN/NAME_fold_K")
    parser.add_argument("--test-csv", type=Path, metavar="FILE", help="its ids and order; default: those of fold 0")
    args = parser.parse_args()
    started = time.time()

    # Here and not above: --help must not wait for pyarrow.
    from arena_distill.evaluation.cv_ensemble import ensemble_runs

    ensemble_runs(
        args.out,
        args.run,
        output_dir=args.output_dir,
        student=args.student,
        method=args.weights,
        space=args.space,
        test_csv=args.test_csv,
        started=started,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
