"""Step 4: each fold's teacher scores exactly the rows that it never saw; the out-of-fold table, validated.

python scripts/infer_teachers.py --infer-folds 0,1 --infer-models llama3-8b
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.inference.oof_settings import OofSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(OofSettings, sys.argv[1:], program="infer_teachers.py", description=__doc__ or "")
    from arena_distill.inference.oof_stage import infer_teachers

    infer_teachers(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
