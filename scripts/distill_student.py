"""Step 5: train one student for each fold, on votes and the teachers' out-of-fold labels.

python scripts/distill_student.py --student-model-name path/to/model --student-folds 0,1
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.distill_settings import DistillSettings

    settings = parse_settings(DistillSettings, sys.argv[1:], program="distill_student.py", description=__doc__ or "")
    from arena_distill.training.distill_stage import distill_students

    distill_students(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
