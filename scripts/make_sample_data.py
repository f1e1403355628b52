"""Write the sample data: small, honest files in the LMSYS layout whose votes follow a known law."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    """Parse the command line, write the files, print the table of log losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out-dir", type=Path, default=Path("data/sample"), help="directory to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=42, help="equal seeds give equal bytes (default: %(default)s)")
    parser.add_argument("--train-rows", type=int, default=1500, help="rows of train.csv (default: %(default)s)")
    parser.add_argument("--test-rows", type=int, default=300, help="rows of test.csv (default: %(default)s)")
    parser.add_argument("--extra-rows", type=int, default=300, help="rows of ultrafeedback.csv (default: %(default)s)")
    settings = parser.parse_args()
    if min(settings.train_rows, settings.test_rows, settings.extra_rows) < 100:
        parser.error("--train-rows, --test-rows and --extra-rows must be at least 100")

    from arena_distill.data.sample import SPLIT_ROWS, summary, write_sample  # not before: --help answers at once

    sizes = {**SPLIT_ROWS, "train": settings.train_rows, "test": settings.test_rows}
    sizes["ultrafeedback"] = settings.extra_rows
    rows = write_sample(settings.out_dir, settings.seed, sizes)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
