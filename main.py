"""Front door of the student path: train, calibrate, score and use one preference model. Or the whole pipeline in small.

python main.py --mode student-train --train-csv votes.csv
python main.py --mode student-calibrate
python main.py --mode student-eval-holdout
python main.py --mode student-infer --test-csv pairs.csv

python main.py --mode train        steps 1 to 7 with tiny models (PROFILE=tiny), on the sample unless told otherwise
python main.py --mode inference    steps 8 and 9: sub/final_submission.csv, its evaluation and the report
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.student_settings import StudentSettings

    settings = parse_settings(StudentSettings, sys.argv[1:], program="main.py", description=__doc__ or "")
    from arena_distill.training import student_modes

    student_modes.run(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
