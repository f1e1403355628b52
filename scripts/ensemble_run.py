"""Step 9: a run's submissions made one: those of its folds, or without folds step 8's, or else a single student's.

python scripts/ensemble_run.py --run x --use-weighted
"""

import sys
import time

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.evaluation.ensemble_settings import EnsembleSettings
    from arena_distill.runtime.settings import parse_settings

    started = time.time()
    settings = parse_settings(EnsembleSettings, sys.argv[1:], program="ensemble_run.py", description=__doc__ or "")
    from arena_distill.evaluation.run_ensemble import ensemble_of_run

    ensemble_of_run(settings, started=started)


if __name__ == "__main__":
    sys.exit(run_command(main))
