"""Write the classification head of a student to a file of its own, and print its shapes and identity.

python scripts/export_classifier_head.py --model-dir model_save/final_merged_model --out heads/classifier_head.pt
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.inference.export_head import ExportHeadSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(
        ExportHeadSettings, sys.argv[1:], program="export_classifier_head.py", description=__doc__ or ""
    )
    from arena_distill.inference.export_head import export_head

    export_head(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
