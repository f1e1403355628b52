"""How fast a teacher scores rows: our label tokens, beside lm-evaluation-harness and whole answers' likelihoods.

    python bench/teacher_scoring.py                  # a Llama of 91M parameters with a vocabulary of 128,256
    python bench/teacher_scoring.py --quick
    python bench/teacher_scoring.py --hidden 768 --layers 12 --rows 16      # a deeper one; not written down

Ours is one pass over each row, whose last state meets three rows of the output head. The harness (`hf` model,
`loglikelihood` of three choices, which share a pass) computes the logits of the whole vocabulary at every token and
normalises them; likelihoods of whole answers take that, and two passes a row. All read the same texts, with weights in
the same dtype; tokenizing counts, loading does not.

Equality: our three logits and the harness's three log-likelihoods, each normalised over the three. The likelihoods of
answers are another quantity, so there is nothing to compare; they are what many users score pairs with.

What it does not show: large models. The wider and deeper the body is, the less the head costs beside it: of the 8
billion weights of Llama 3 8B it has a fifteenth, of these here most. GPUs are not measured.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import Measured, Peer, Row, Timed, arguments, finish, measure, peer_version
from texts import chat_rows, sample_texts

from arena_distill.data.prompts import TextFormat, View, assemble, texts_of, tokenize_rows
from arena_distill.data.records import TEXT_COLUMNS, Rows
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.label_tokens import LabelTokens
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import TinySize, make_tiny_model

HIDDEN, LAYERS, VOCABULARY, LONGEST = 512, 8, 128_256, 2048
ROWS, REPEATS, PEER_BATCH = 24, 2, 8
BATCH_TOKENS = 4096
WORDS = ("A", "B", "C")
DTYPES = ("float32", "bfloat16")
FLOAT32_TOLERANCE = 1e-4  # of a log-probability
BFLOAT16_TOLERANCE = 0.02  # of a probability, to float32


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="(default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="width of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="its depth (default: %(default)s)")
    options = parser.parse_args()
    usual = (options.rows, options.hidden, options.layers) == (ROWS, HIDDEN, LAYERS)
    if options.quick:
        options.rows, options.layers = 8, 2
    quiet_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        sizes = write_teacher(directory, options.hidden, options.layers)
        judges = {dtype: load_judge(directory, max_length=LONGEST, dtype=dtype) for dtype in DTYPES}
        judge = judges["float32"]
        rows = chat_rows(options.rows, tokenizer=judge.tokenizer, longest=LONGEST - judge.layout.overhead)
        tokens = write_rows(rows, judge, directory / "rows.parquet")
        measured = take_turns(judges, rows, directory, 1 if options.quick else REPEATS)
    result: dict[str, Any] = {
        "model": {**sizes, "hidden": options.hidden, "layers": options.layers, "vocabulary": VOCABULARY}
    }
    result |= {"rows": len(rows), "tokens": tokens, "peer_batch_rows": PEER_BATCH, "our_batch_tokens": BATCH_TOKENS}
    result["lm_eval"] = peer_version("lm-eval")
    result |= figures(measured, tokens)
    finish("teacher_scoring", {"measured": result}, table(measured, result), options.quick or not usual)
    return 0


def write_teacher(directory: Path, hidden: int, layers: int) -> dict[str, int]:
    """A teacher of random weights; its tokenizer, trained on the sample, knows fewer tokens than the model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tiny_model("llama", sample_texts(), directory, TinySize(64, 1, 2, 4000, LONGEST), seed=1)
    tokenizer = load_tokenizer(str(directory))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,  # as in Llama's small models
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    LabelTokens.of_tokenizer(tokenizer, WORDS).save(directory)
    TextFormat.for_label_tokens(tokenizer, WORDS).save(directory)
    return {"parameters": model.num_parameters(), "body": model.num_parameters() - VOCABULARY * hidden}


def write_rows(rows: Rows, judge: ClassifierJudge, file: Path) -> int:
    """What the peers read: the judge's whole text as a question, and the three texts; returns the judge's tokens."""
    sequences, number = assemble(tokenize_rows(rows, judge.tokenizer), judge.layout, [View(LONGEST)])
    ids = [sequences.ids[k].tolist() for k in number[0]]
    questions = [judge.tokenizer.decode(row[1:], clean_up_tokenization_spaces=False) for row in ids]
    if judge.tokenizer(questions)["input_ids"] != ids:
        raise SystemExit("the peers would read other tokens than the judge")
    texts = dict(zip(TEXT_COLUMNS, texts_of(rows), strict=True))
    pq.write_table(pa.table({"question": questions, **texts}), file)
    return sum(map(len, ids))


def take_turns(judges: dict[str, ClassifierJudge], rows: Rows, directory: Path, repeats: int) -> Measured:
    """Seconds and results of all ways."""
    few = rows.slice(0, 2)
    choices = ("--choices", *WORDS, "--batch", str(PEER_BATCH))
    with Peer("peer_teacher_scoring.py", directory, directory / "rows.parquet", directory, *choices) as peer:

        def ours(dtype: str, some: Rows = rows) -> Any:
            judges[dtype].max_batch_tokens = BATCH_TOKENS
            return judges[dtype].logits(some)

        def theirs(way: str, count: int = len(rows)) -> Timed:
            seconds = peer(f"{way}:{count}")["seconds"]
            return Timed(np.load(directory / f"{way}.npy"), seconds)

        def warm_up() -> None:
            for dtype in DTYPES:
                ours(dtype, few)
                theirs(f"harness {dtype}", len(few))
                theirs(f"answers {dtype}", len(few))

        ways: dict[str, Any] = {}
        for dtype in DTYPES:
            ways[f"ours {dtype}"] = partial(ours, dtype)
            ways |= {way: partial(theirs, way) for way in (f"harness {dtype}", f"answers {dtype}")}
        return measure(ways, repeats, warm_up)


def figures(measured: Measured, tokens: int) -> dict[str, Any]:
    """Seconds, ratios, and how far the results are apart."""
    log_p = {way: normalised(result) for way, result in measured.results.items() if not way.startswith("answers")}
    exact = log_p["harness float32"]
    rate = {f"ours {dtype}": round(tokens / measured.median(f"ours {dtype}")) for dtype in DTYPES}
    return {
        "seconds": {way: [round(value, 3) for value in values] for way, values in measured.seconds.items()},
        "tokens_per_second": rate,
        "logit_spread": round(float(measured.results["ours float32"].std(axis=0).min()), 3),
        "largest_difference": {
            "log_probability, float32": float(np.abs(log_p["ours float32"] - exact).max()),
            **{
                f"probability, {way}, to the harness in float32": float(
                    np.abs(np.exp(log_p[way]) - np.exp(exact)).max()
                )
                for way in ("ours bfloat16", "harness bfloat16")
            },
        },
        "log_loss_like": {
            way: round(float(-(np.exp(exact) * values).sum(axis=1).mean()), 6) for way, values in log_p.items()
        },
        "ratio": {
            f"{peer} {theirs} / ours {own}": measured.ratios(f"{peer} {theirs}", f"ours {own}")
            for peer in ("harness", "answers")
            for theirs, own in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16"))
        },
    }


def normalised(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities over the three classes, float64 ``[N, 3]``."""
    scores = scores.astype(np.float64)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def table(measured: Measured, result: dict[str, Any]) -> list[Row]:
    """A line for each peer and pair of dtypes."""
    apart = result["largest_difference"]
    spread = result["logit_spread"] >= 0.1
    exact = apart["log_probability, float32"]
    ours = apart["probability, ours bfloat16, to the harness in float32"]
    harness = apart["probability, harness bfloat16, to the harness in float32"]
    equal32, equal16 = spread and exact <= FLOAT32_TOLERANCE, spread and ours <= BFLOAT16_TOLERANCE
    lines = []
    for way, peer, targets in (
        ("harness", "lm-evaluation-harness hf", (5, 5, 8)),
        ("answers", "likelihood of whole answers", (8, 8, None)),
    ):
        for (theirs, own), target in zip(
            (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")), targets, strict=True
        ):
            said = {
                "float32": f"log-probabilities at most {exact:.0e} apart",
                "bfloat16": f"probabilities at most {ours:.3f} from float32's (the harness's {harness:.3f})",
            }[own]
            lines.append(
                Row(
                    f"teacher scoring, {own}" if theirs == own else f"teacher scoring, {own} against {theirs}",
                    peer,
                    measured.ratio(f"{way} {theirs}", f"ours {own}"),
                    target,
                    equal32 if own == "float32" else equal16,
                    f"{measured.median(f'{way} {theirs}'):.1f} s against {measured.median(f'ours {own}'):.1f} s; "
                    + (said if way == "harness" else "another quantity: nothing to compare; ours are those above"),
                )
            )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
