"""Write small random checkpoints of real architectures, with tokenizers trained on a preference file's texts."""

import argparse
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from arena_distill.runtime.errors import SettingsError, run_command

STAGE = "make_tiny_models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--texts", default="data/sample/train.csv", help="preference file the tokenizers learn from")
    parser.add_argument("--out-dir", type=Path, default=Path("model_save/tiny"), help="one directory per family in it")
    parser.add_argument("--families", default="all", help="comma list, or all")
    parser.add_argument("--hidden", type=int, default=128, help="width")
    parser.add_argument("--layers", type=int, default=2, help="depth")
    parser.add_argument("--heads", type=int, default=4, help="attention heads")
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens, at most")
    parser.add_argument("--positions", type=int, default=2048, help="longest sequence")
    parser.add_argument("--seed", type=int, default=42, help="of the weights")
    args = parser.parse_args()

    from arena_distill.data.loading import load_texts
    from arena_distill.data.prompts import texts_of
    from arena_distill.models.quiet import quiet_libraries
    from arena_distill.models.tiny import TinySize, families, make_tiny_model
    from arena_distill.runtime.artifacts import (
        partial_directory,
        publish,
        require_replaceable,
        sha256_file,
        write_manifest,
    )

    started = time.time()
    quiet_libraries()
    chosen = families() if args.families == "all" else tuple(args.families.split(","))
    if unknown := set(chosen) - set(families()):
        raise SettingsError(f"--families: unknown {', '.join(sorted(unknown))} -> use {', '.join(families())}")
    for name in ("hidden", "layers", "heads", "vocabulary", "positions"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name}: must be at least 1, not {getattr(args, name)}")
    if args.hidden % (2 * args.heads):
        raise SettingsError(f"--hidden: must be a multiple of twice --heads ({2 * args.heads}), not {args.hidden}")
    size = TinySize(args.hidden, args.layers, args.heads, args.vocabulary, args.positions)
    texts = [text for column in texts_of(load_texts(args.texts)) for text in column.to_pylist()]
    for family in chosen:
        final = args.out_dir / family
        require_replaceable(final, STAGE)
        partial = partial_directory(final)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parameters = make_tiny_model(family, texts, partial, size, args.seed)
        settings = {"family": family, "size": asdict(size), "seed": args.seed}
        inputs = {"texts": sha256_file(Path(args.texts))}
        write_manifest(partial, stage=STAGE, settings=settings, inputs=inputs, started=started)
        publish(partial, final)
        print(f"{final}: {parameters:,} parameters")


if __name__ == "__main__":
    sys.exit(run_command(main))
