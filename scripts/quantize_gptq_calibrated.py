"""Step 7: 8-bit (or 4-bit) weights by GPTQ, int8 for encoders; published only if held-out log loss stays.

python scripts/quantize_gptq_calibrated.py --model-dir path/to/model --out-dir path/to/result --calib-csv data/train.csv
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.conversion.quantize_settings import QuantizeSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(
        QuantizeSettings, sys.argv[1:], program="quantize_gptq_calibrated.py", description=__doc__ or ""
    )
    from arena_distill.conversion.quantize_stage import quantize_student

    quantize_student(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
