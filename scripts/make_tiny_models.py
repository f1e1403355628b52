"""Write small checkpoints of real architectures, with tokenizers trained on a preference file's texts.

Weights are random; decoders can be pretrained on the texts, so that there is something to tune.
"""

import argparse
import sys
from pathlib import Path

from arena_distill.runtime.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--texts", default="data/sample/train.csv", help="preference file the tokenizers learn from")
    parser.add_argument("--out-dir", type=Path, default=Path("model_save/tiny"), help="one directory per family in it")
    parser.add_argument("--families", default="all", help="comma list (bert:64 has a width of its own), or all")
    parser.add_argument("--hidden", type=int, default=128, help="width")
    parser.add_argument("--layers", type=int, default=2, help="depth")
    parser.add_argument("--heads", type=int, default=4, help="attention heads")
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens, at most")
    parser.add_argument("--positions", type=int, default=2048, help="longest sequence")
    parser.add_argument("--pretrain-epochs", type=int, default=0, help="passes of decoders over the texts; 0: random")
    parser.add_argument("--seed", type=int, default=42, help="of the weights")
    args = parser.parse_args()

    from arena_distill.training.tiny_checkpoints import TinyOrder, make_tiny_checkpoints

    make_tiny_checkpoints(TinyOrder(**vars(args)))


if __name__ == "__main__":
    sys.exit(run_command(main))
