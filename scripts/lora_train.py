"""Train a LoRA adapter on preference data, for one base model; scripts/lora_merge.py then merges it.

python scripts/lora_train.py --base-model path/to/model --out-dir model_save/my_lora --ut-data votes.csv --bf16
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.runtime.settings import parse_settings
    from arena_distill.training.post_pretrain_settings import LoraTrainSettings

    settings = parse_settings(LoraTrainSettings, sys.argv[1:], program="lora_train.py", description=__doc__ or "")
    from arena_distill.training.post_pretrain_stage import post_pretrain_all

    post_pretrain_all(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
