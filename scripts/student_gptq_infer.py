"""Step 8: calibrated probabilities for the test rows by a student of any kind, quantized ones first of all.

python scripts/student_gptq_infer.py --model-dir model_save/final_quantized_model --tta-lengths 512,1024
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.inference.predict_settings import PredictSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(PredictSettings, sys.argv[1:], program="student_gptq_infer.py", description=__doc__ or "")
    from arena_distill.inference.predict_stage import predict

    predict(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
