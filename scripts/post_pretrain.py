"""Step 1: LoRA post-pretraining of the base models on extra preference data, and merging.

python scripts/post_pretrain.py --run-stage llama --llama-base path/to/model --ut-data data/ultrafeedback.csv
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.post_pretrain_settings import PostPretrainSettings

    settings = parse_settings(PostPretrainSettings, sys.argv[1:], program="post_pretrain.py", description=__doc__ or "")
    from arena_distill.training.post_pretrain_stage import post_pretrain_all

    post_pretrain_all(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
