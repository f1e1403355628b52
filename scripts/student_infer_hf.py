"""Calibrated probabilities for the test rows by a student whose weights are not quantized: plain, adapter or merged.

python scripts/student_infer_hf.py --model-dir model_save/distilled_gemma2-9b_fold_0 --out sub/fold_0.csv
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.inference.predict_settings import UnquantizedSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(
        UnquantizedSettings, sys.argv[1:], program="student_infer_hf.py", description=__doc__ or ""
    )
    from arena_distill.inference.predict_stage import predict

    predict(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
