"""Merge a LoRA adapter into its base model: a directory that plain transformers loads."""

import argparse
import os
import sys
from pathlib import Path

from arena_distill.runtime.errors import SettingsError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--base-model", default="", help="directory or hub name; default: the one the adapter names")
    parser.add_argument("--lora-dir", type=Path, required=True, help="directory of the adapter, as PEFT saves it")
    parser.add_argument("--out-dir", type=Path, required=True, help="receives the merged model")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="default: each tensor keeps its own"
    )
    parser.add_argument("--force", action="store_true", help="merge again even if the output is up to date (FORCE=1)")
    args = parser.parse_args()

    from arena_distill.models.backbone import check_backbone
    from arena_distill.models.lora_file import read_adapter_config
    from arena_distill.models.merge import merge_adapter

    base = args.base_model or read_adapter_config(args.lora_dir).get("base_model_name_or_path")
    if not base:
        raise SettingsError(f"{args.lora_dir}: does not say which base model it is for -> give --base-model")
    base = check_backbone(base, "--base-model")
    force = args.force or os.environ.get("FORCE", "").lower() in ("1", "true", "yes", "on")
    report = merge_adapter(base, args.lora_dir, args.out_dir, dtype=args.dtype, force=force)
    print(f"{args.out_dir}: {report.summary()}")


if __name__ == "__main__":
    sys.exit(run_command(main))
