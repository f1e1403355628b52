"""Score a submission by the votes on its rows: with intervals, by class and slice, its biases, and its members.

python scripts/evaluate.py --submission sub/final_ensemble.csv --test-csv pairs.csv --labels-csv votes.csv
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.evaluation.evaluation_settings import EvaluationSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(EvaluationSettings, sys.argv[1:], program="evaluate.py", description=__doc__ or "")
    from arena_distill.evaluation.evaluate_submission import evaluate

    evaluate(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
