"""What test-time augmentation costs: both orders of the answers at three lengths, beside six passes over the rows.

    python bench/tta.py
    python bench/tta.py --quick             # a look

A row that fits a shorter limit has the same tokens at all longer ones, and is computed once for them; texts are
tokenized once for all six views. The limits are 512, 1024 and 2000 tokens, and rows are as long as chats
(bench/texts.py). The model is a BERT of 384 dimensions and three layers with random weights, in float32.

Three comparisons: with six calls of the same judge, one for each view; with six passes of the same model over batches
of 16 rows in the order of the file, padded to the longest of each (as one would write it by hand, tokenized once); and
how much a second length adds where 80 % of the rows fit the shorter one. Equal results mean logits within 1e-4.

What is saved depends on how many rows fit the shorter limits; the result says how many. Averaging the views and
calibrating them is not part of the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, arguments, finish, measure
from models import write_encoder
from texts import chat_rows

from arena_distill.data.prompts import Sequences, View, assemble, tokenize_rows
from arena_distill.data.records import Rows
from arena_distill.inference.judge import ClassifierJudge, in_class_order, load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.models.classifier import pad_batch
from arena_distill.models.quiet import quiet_libraries

LENGTHS = (512, 1024, 2000)
ROWS, REPEATS, LAYERS = 64, 3, 3
BATCH_TOKENS, PLAIN_BATCH = 4096, 16
TARGET, SECOND_LENGTH_LIMIT = 2.5, 1.35
SHARE = 0.8  # of the rows fit the shorter of two lengths
LOGIT_BOUND = 1e-4
PLAIN = "by hand"


def main() -> int:
    options = arguments(__doc__).parse_args()
    quiet_libraries()
    from transformers import AutoModelForSequenceClassification

    count, repeats = (6, 1) if options.quick else (ROWS, REPEATS)
    with tempfile.TemporaryDirectory() as temporary:
        parameters = write_encoder(Path(temporary), layers=LAYERS, positions=2048)
        judge = load_judge(temporary, device="cpu")
        plain_model = AutoModelForSequenceClassification.from_pretrained(temporary).eval()
        judge.max_batch_tokens = BATCH_TOKENS
        rows = chat_rows(count, seed=11, tokenizer=judge.tokenizer)
        result, lines = compare(judge, plain_model, rows, repeats)
    model = {"layers": LAYERS, "hidden": 384, "parameters": parameters}
    finish("tta", {"model": model, "batch_tokens": BATCH_TOKENS, **result}, lines, options.quick)
    return 0


def compare(
    judge: ClassifierJudge, plain_model: torch.nn.Module, rows: Rows, repeats: int
) -> tuple[dict[str, Any], list[Row]]:
    """All ways in turn, what each computes, and the lines of the table."""
    tokens = tokenize_rows(rows, judge.tokenizer)
    whole = tokens.lengths.sum(axis=1) + judge.layout.overhead
    short = int(np.sort(whole)[int(np.ceil(SHARE * len(rows))) - 1])
    short, long = (min(length, 2048) for length in (short, 2 * short))
    six = tta_views(list(LENGTHS), swap=True)
    views = {"six views": six, "one length": [View(long)], "two lengths": [View(short), View(long)]}

    ways: dict[str, Callable[[], np.ndarray]] = {
        "six views": lambda: judge.view_logits(rows, six),
        "six passes": lambda: np.concatenate([judge.view_logits(rows, [view]) for view in six]),
        PLAIN: lambda: plain_passes(plain_model, judge, rows, six),
        "one length": lambda: judge.view_logits(rows, views["one length"]),
        "two lengths": lambda: judge.view_logits(rows, views["two lengths"]),
    }
    few = rows.slice(0, 4)

    def warm_up() -> None:
        judge.view_logits(few, six)
        plain_passes(plain_model, judge, few, six)

    measured = measure(ways, repeats, warm_up)
    found = {name: assemble(tokens, judge.layout, some)[0].ids.lengths for name, some in views.items()}
    found["six passes"] = np.concatenate([assemble(tokens, judge.layout, [view])[0].ids.lengths for view in six])
    computed = {name: {"sequences": len(sizes), "tokens": int(sizes.sum())} for name, sizes in found.items()}
    views_found = measured.results["six views"]
    apart = {name: float(np.abs(views_found - measured.results[name]).max()) for name in ("six passes", PLAIN)}
    fits = {str(length): round(float((whole <= length).mean()), 3) for length in (*LENGTHS, short)}
    tokens_ratio = computed["six passes"]["tokens"] / computed["six views"]["tokens"]
    question = f"TTA: swap × {', '.join(map(str, LENGTHS))} tokens"
    share = ", ".join(f"{fits[str(length)]:.0%}" for length in LENGTHS)
    lines = [
        Row(
            question,
            "six passes of the same judge",
            measured.ratio("six passes", "six views"),
            TARGET,
            apart["six passes"] <= LOGIT_BOUND,
            f"{share} of the rows fit; {tokens_ratio:.2f} times the tokens; logits within {apart['six passes']:.0e}",
        ),
        Row(
            question,
            f"six passes by hand, batch {PLAIN_BATCH}",
            measured.ratio(PLAIN, "six views"),
            TARGET,
            apart[PLAIN] <= LOGIT_BOUND,
            f"in the order of the file, padded; logits within {apart[PLAIN]:.0e}",
        ),
        Row(
            f"TTA: {short} and {long} tokens, {fits[str(short)]:.0%} fit the shorter",
            "the longer alone",
            measured.ratio("two lengths", "one length"),
            SECOND_LENGTH_LIMIT,
            True,
            f"{computed['two lengths']['tokens'] / computed['one length']['tokens']:.2f} times the tokens",
            at_most=True,
        ),
    ]
    result = {
        "rows_judged": len(rows),
        "lengths": LENGTHS,
        "two_lengths": [short, long],
        "share_that_fits": fits,
        "computed": computed,
        "seconds": {name: [round(value, 3) for value in values] for name, values in measured.seconds.items()},
        "ratios": {name: measured.ratios(name, "six views") for name in ("six passes", PLAIN)}
        | {"two lengths to one": measured.ratios("two lengths", "one length")},
        "largest_logit_difference": apart,
    }
    return result, lines


@torch.inference_mode()
def plain_passes(model: torch.nn.Module, judge: ClassifierJudge, rows: Rows, views: list[View]) -> np.ndarray:
    """Every view of every row, batch after batch in the order of the rows, float32 ``[V, N, 3]``."""
    tokens = tokenize_rows(rows, judge.tokenizer)
    out = np.empty((len(views), len(rows), 3), dtype=np.float32)
    for v, view in enumerate(views):
        sequences: Sequences = assemble(tokens, judge.layout, [view])[0]
        for start in range(0, len(rows), PLAIN_BATCH):
            batch = np.arange(start, min(start + PLAIN_BATCH, len(rows)))
            inputs = pad_batch(sequences, batch, judge.tokenizer.pad_token_id)
            out[v, batch] = model(**inputs).logits.numpy()
    return in_class_order(out, views)


if __name__ == "__main__":
    raise SystemExit(main())
