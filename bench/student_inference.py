"""How fast a small student judges on a CPU, beside transformers' pipeline and sentence-transformers' CrossEncoder.

    python bench/student_inference.py
    python bench/student_inference.py --quick       # a look

The student is a BERT of 22M parameters with random weights. Rows are as long as chats (bench/texts.py) and cut to 512
tokens beforehand, about 380 on average, because peers would cut them in another way than we do; so everybody reads the
same tokens, and tokenizing counts for everybody. Loading counts for nobody. A peer gets the prompt and A as the first
text of a pair, with the separator between them, and B as the second.

The headline is our bfloat16 beside a peer as one gets it: in float32. Lines at equal dtype stand below. Equal results
mean: log-probabilities in float32 within 1e-4 of each other, and our bfloat16 probabilities within 0.02 of the peer's
float32 ones. With 8-bit integers the log loss that is expected, were votes drawn from our float32 probabilities, is
within 0.005 of bfloat16's (the model knows nothing of the votes, so on those a difference would be chance). Our batches
hold as many tokens as was fastest on a few rows.

The last line sets the arithmetic that real tokens need (two operations for each weight of a linear layer and token,
4 × length × width for attention in each layer and token; embeddings, norms and activations not counted) against the
fastest matrix product of the same run, 4096 × 4096.

Not shown here: accuracy of trained models, GPUs, other sizes, one row at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import Measured, Peer, Row, Timed, arguments, finish, measure, peer_version
from models import write_encoder
from texts import chat_rows, cut_rows, row_lengths, write_parquet

from arena_distill.data.records import Rows, targets
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.int8_cpu import can_compute_int8
from arena_distill.models.quiet import quiet_libraries

ROWS, REPEATS, WARM_UP = 160, 3, 16
MEDIAN_TOKENS = 410  # cut at 512, these rows have 380 tokens on average
MAX_LENGTH = 512
BATCH_TOKENS = (2048, 4096, 8192)  # tried once
TUNING_ROWS = 48
PEERS = {"pipeline": ("transformers.pipeline, batch 16", 4.0), "CrossEncoder": ("CrossEncoder.predict, batch 32", 2.5)}
DTYPES = ("float32", "bfloat16")
GEMM_SIZE, GEMM_SHARE = 4096, 60.0
LOG_PROBABILITY_BOUND, PROBABILITY_BOUND, LOG_LOSS_BOUND = 1e-4, 0.02, 0.005

Quantization = Literal["none", "int8", "nf4"]
QUANTS: tuple[Quantization, ...] = ("int8",) if can_compute_int8("bert") else ()  # weights and activations
QUANT_TARGET = 1.5  # against our own bfloat16, where the CPU has VNNI


def main() -> int:
    options = arguments(__doc__).parse_args()
    quiet_libraries()
    count, repeats = (12, 1) if options.quick else (ROWS, REPEATS)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        parameters = write_encoder(directory / "model")
        tokenizer = load_tokenizer(str(directory / "model"))
        judges = {f"ours {dtype}": load(directory / "model", dtype) for dtype in DTYPES}
        judges |= {f"ours {quant}": load(directory / "model", "bfloat16", quant) for quant in QUANTS}
        layout = judges["ours float32"].layout
        rows = chat_rows(count, seed=7, median=MEDIAN_TOKENS, tokenizer=tokenizer)
        rows = cut_rows(rows, tokenizer, layout, MAX_LENGTH)
        lengths = row_lengths(rows, tokenizer) + layout.overhead
        write_parquet(rows, directory / "rows.parquet")
        tried = tune(judges["ours bfloat16"], rows.slice(0, min(count, TUNING_ROWS)))
        for judge in judges.values():
            judge.max_batch_tokens = min(tried, key=tried.__getitem__)
        with Peer("peer_student_inference.py", directory / "model", directory / "rows.parquet", directory) as peer:
            measured = compare(judges, rows, peer, directory, repeats)
    speed = {way: round(count / measured.median(way), 1) for way in measured.seconds if not way.startswith("product")}
    result = {
        "model": {"parameters": parameters, "hidden": 384, "layers": 6, "heads": 12},
        "rows_judged": count,
        "tokens": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max()), "sum": int(lengths.sum())},
        "max_batch_tokens": {"chosen": min(tried, key=tried.__getitem__), "seconds": tried},
        "peer_versions": {name: peer_version(name) for name in ("transformers", "sentence-transformers", "torch")},
        "seconds": {way: [round(value, 3) for value in values] for way, values in measured.seconds.items()},
        "rows_per_second": speed,
    }
    lines, extra = compared(measured, targets(rows), lengths, speed)
    print_ways(result, measured)
    finish("student_inference", {**result, **extra}, lines, options.quick)
    return 0


def load(directory: Path, dtype: str, quant: Quantization = "none") -> ClassifierJudge:
    """Our judge on the CPU."""
    return load_judge(directory, dtype=dtype, quant=quant, max_length=MAX_LENGTH, device="cpu")


def tune(judge: ClassifierJudge, rows: Rows) -> dict[int, float]:
    """Seconds of a few rows by tokens of a batch, the better of two tries each."""
    seconds: dict[int, float] = {}
    judge.logits(rows.slice(0, WARM_UP))
    for budget in BATCH_TOKENS * 2:
        judge.max_batch_tokens = budget
        started = time.perf_counter()
        judge.logits(rows)
        seconds[budget] = min(seconds.get(budget, np.inf), round(time.perf_counter() - started, 3))
    return seconds


def compare(judges: dict[str, ClassifierJudge], rows: Rows, peer: Peer, directory: Path, repeats: int) -> Measured:
    """All ways in turn; results are log-probabilities."""

    def ask(way: str, count: int) -> Timed:
        answer = peer(f"{way}:{count}")
        if answer["threads"] != torch.get_num_threads():
            raise SystemExit(f"the peer uses {answer['threads']} threads, we {torch.get_num_threads()}")
        return Timed(np.load(directory / f"{way}.npy"), answer["seconds"])

    def warm_up() -> None:
        for judge in judges.values():
            judge.logits(rows.slice(0, WARM_UP))
        for way in peer_ways:
            ask(way, min(len(rows), WARM_UP))

    peer_ways = [f"{name} {dtype}" for name in PEERS for dtype in DTYPES]
    ways: dict[str, Callable[[], Any]] = {way: partial(ask, way, len(rows)) for way in peer_ways}
    ways |= {way: partial(score, judge, rows) for way, judge in judges.items()}
    ways |= {f"product {dtype}": partial(product, getattr(torch, dtype)) for dtype in DTYPES}
    return measure(ways, repeats, warm_up)


def product(dtype: torch.dtype) -> Timed:
    """Least seconds of a matrix product."""
    a = torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype)
    b = torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return Timed(None, min(seconds))


def score(judge: ClassifierJudge, rows: Rows) -> np.ndarray:
    """Our log-probabilities ``[N, 3]``."""
    return np.asarray(torch.from_numpy(judge.logits(rows)).double().log_softmax(dim=1))


def operations(lengths: np.ndarray) -> float:
    """Floating-point operations that the tokens of sequences of these lengths need."""
    layers, hidden, inner = 6, 384, 1536
    linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    return float(lengths.sum() * linear + (4 * hidden * layers * lengths.astype(float) ** 2).sum())


def compared(
    measured: Measured, votes: np.ndarray, lengths: np.ndarray, speed: dict[str, float]
) -> tuple[list[Row], dict[str, Any]]:
    """The lines of the table, and how results differ."""
    found = measured.results
    loss = {way: float(-(votes * value).sum(axis=1).mean()) for way, value in found.items() if value is not None}
    lines, differences = [], {}
    for name, (title, target) in PEERS.items():
        peer = found[f"{name} float32"]
        exact = largest(found["ours float32"], peer)
        rounded = largest(np.exp(found["ours bfloat16"]), np.exp(peer))
        theirs = largest(np.exp(found[f"{name} bfloat16"]), np.exp(peer))
        differences[name] = {
            "log_probability_float32": exact,
            "probability_bfloat16_to_peer_float32": rounded,
            "probability_peer_bfloat16_to_its_float32": theirs,
        }
        same32 = exact <= LOG_PROBABILITY_BOUND
        same16 = rounded <= PROBABILITY_BOUND
        lines.append(
            Row(
                "student inference, bf16",
                f"{title}, fp32",
                measured.ratio(f"{name} float32", "ours bfloat16"),
                target,
                same32 and same16,
                f"{speed['ours bfloat16']:.1f} and {speed[f'{name} float32']:.1f} rows/s; probabilities within "
                f"{rounded:.1e} (in fp32 {exact:.1e}), log loss {loss['ours bfloat16'] - loss[f'{name} float32']:+.5f}",
            )
        )
        for dtype, short, same in zip(DTYPES, ("fp32", "bf16"), (same32, same16), strict=True):
            lines.append(
                Row(
                    f"student inference, {short}",
                    f"{title}, {short}",
                    measured.ratio(f"{name} {dtype}", f"ours {dtype}"),
                    None,
                    same,
                    f"{speed[f'ours {dtype}']:.1f} and {speed[f'{name} {dtype}']:.1f} rows/s",
                )
            )
    sure = np.exp(found["ours float32"])
    expected = {way: float(-(sure * found[way]).sum(axis=1).mean()) for way in found if way.startswith("ours")}
    for quant in QUANTS:
        change = expected[f"ours {quant}"] - expected["ours bfloat16"]
        lines.append(
            Row(
                f"student inference, {quant}",
                "our own bf16",
                measured.ratio("ours bfloat16", f"ours {quant}"),
                QUANT_TARGET,
                abs(change) <= LOG_LOSS_BOUND,
                f"{speed[f'ours {quant}']:.1f} and {speed['ours bfloat16']:.1f} rows/s; expected loss {change:+.5f}",
            )
        )
        exact = found["pipeline float32"]
        lines.append(
            Row(
                f"student inference, {quant}",
                f"{PEERS['pipeline'][0]}, fp32",
                measured.ratio("pipeline float32", f"ours {quant}"),
                None,
                abs(change) <= LOG_LOSS_BOUND,
                f"{speed[f'ours {quant}']:.1f} and {speed['pipeline float32']:.1f} rows/s; probabilities within "
                f"{largest(np.exp(found[f'ours {quant}']), np.exp(exact)):.1e}",
            )
        )
    share, shares = matmul_share(measured, lengths)
    lines.append(share)
    return lines, {"differences": differences, "log_loss": loss, "expected_log_loss": expected, **shares}


def matmul_share(measured: Measured, lengths: np.ndarray) -> tuple[Row, dict[str, Any]]:
    """Our rate beside that of a matrix product."""
    rates = {dtype: 2e-9 * GEMM_SIZE**3 / min(measured.seconds[f"product {dtype}"]) for dtype in DTYPES}
    ours = {dtype: operations(lengths) * 1e-9 / measured.median(f"ours {dtype}") for dtype in DTYPES}
    shares = {dtype: 100 * ours[dtype] / rates[dtype] for dtype in DTYPES}
    detail = f"real tokens only: {ours['bfloat16']:.0f} of {rates['bfloat16']:.0f} GFLOP/s; in fp32 "
    detail += f"{ours['float32']:.0f} of {rates['float32']:.0f} ({shares['float32']:.0f} %)"
    row = Row("student inference, bf16", "CPU's matrix product", shares["bfloat16"], GEMM_SHARE, True, detail, "%")
    return row, {"gflops": {"product": rates, "ours": ours, "share_percent": shares}}


def largest(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference."""
    return float(np.abs(first - second).max())


def print_ways(result: dict[str, Any], measured: Measured) -> None:
    """Seconds and rows a second of every way."""
    tokens, speed = result["tokens"], result["rows_per_second"]
    print(
        f"\n{result['rows_judged']} rows of {tokens['mean']} tokens, {result['model']['parameters']:,} parameters, ",
        end="",
    )
    print(f"batches of {result['max_batch_tokens']['chosen']:,} tokens; {torch.get_num_threads()} threads")
    print(f"{'':<24}{'seconds':>9}{'rows/s':>9}{'tokens/s':>10}")
    for way in speed:
        seconds = measured.median(way)
        print(f"{way:<24}{seconds:>9.2f}{speed[way]:>9.1f}{tokens['sum'] / seconds:>10,.0f}")


if __name__ == "__main__":
    raise SystemExit(main())
