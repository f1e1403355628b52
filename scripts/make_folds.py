"""Divide the base rows into folds, and write what each fold trains on and what it holds out.

python scripts/make_folds.py --train-csv votes.csv --extra-data data/ultrafeedback.csv
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.data.fold_settings import FoldSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(FoldSettings, sys.argv[1:], program="make_folds.py", description=__doc__ or "")
    from arena_distill.data import fold_stage

    fold_stage.run(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
