"""Step 3: train one teacher for each family and fold, on the rows of the other folds.

python scripts/train_teachers.py --llama-ft-base path/to/model --skip-qwen --teacher-folds 0,1
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.teacher_settings import TeacherSettings

    settings = parse_settings(TeacherSettings, sys.argv[1:], program="train_teachers.py", description=__doc__ or "")
    from arena_distill.training.teacher_stage import train_teachers

    train_teachers(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
