"""Step 6: average the folds' LoRA students into one adapter, and merge that into the base model.

python scripts/average_students.py --lora-dir-prefix model_save/distilled_gemma2-9b_fold_ --folds all
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.conversion.average_settings import AverageSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(AverageSettings, sys.argv[1:], program="average_students.py", description=__doc__ or "")
    from arena_distill.conversion.average_stage import average_students

    average_students(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
