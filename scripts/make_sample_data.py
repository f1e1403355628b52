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
    settings = parser.parse_args()

    from arena_distill.data.sample import summary, write_sample  # after parsing, so that --help answers at once

    rows = write_sample(settings.out_dir, settings.seed)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
