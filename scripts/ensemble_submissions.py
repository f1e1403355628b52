"""Ensemble submission files of the same test rows into OUT, with a manifest beside it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from arena_distill.runtime.errors import run_command


def main() -> None:
    """Parse the command line, combine, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the submission to write")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="submissions with the same ids")
    parser.add_argument("--weights", metavar="W,W…", help="positive numbers, one a file; default: equal")
    parser.add_argument(
        "--space", choices=["mean", "log"], default="mean", help="average probabilities or their logarithms"
    )
    parser.add_argument("--test-csv", type=Path, metavar="FILE", help="its ids and order; default: the first IN's")
    args = parser.parse_args()
    started = time.time()

    # Here and not above: --help must not wait for pyarrow.
    from arena_distill.evaluation.submission_ensemble import ensemble_files

    ensemble_files(
        args.out, args.inputs, weights=args.weights, space=args.space, test_csv=args.test_csv, started=started
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
