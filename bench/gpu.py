"""How near to a GPU's matrix products a student of Gemma-2-9B's shape trains, and a teacher of Llama-3-8B's scores.

    python bench/gpu.py                    # on a CUDA GPU of 40 GB or more; without one it says so
    python bench/gpu.py --device cpu       # the same code at a hundredth of the widths: whether it runs, no figures

Weights are random, in bfloat16. The student has LoRA on all linear layers and gradient checkpointing; one step is eight
rows, as long as chats and cut at 2,048 tokens, with AdamW. The teacher scores batches of at most 16,384 tokens. Each
is measured without padding (arena_distill.models.unpadded) and with it (the model as transformers has it, batches of
the same rows), real tokens counted. The ceiling is a bfloat16 matrix product of 8192 × 8192 in the same run.

Operations counted: two for each weight of a linear layer and real token forward, as many for the gradient of its input,
as LoRA needs it, and as many again for what checkpointing computes anew; attention's are left out, so that the share is
a little less than the truth. Memory is the peak that torch allocated.

Last, a model of Llama-3.2-1B's shape is saved, loaded by step 8's own code in bfloat16 and with 8-bit weights
(bitsandbytes), and scores the same rows at batches of 16,384 tokens.

Equality: losses of the first step, or logits, without padding and with it within 0.05 of each other, which is what
bfloat16 leaves.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, arguments, finish
from texts import chat_rows, sample_texts

from arena_distill.data.batching import token_budget_batches
from arena_distill.data.prompts import TextFormat
from arena_distill.inference.judge import load_judge
from arena_distill.models.adapters import add_lora
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import TinySize, make_tiny_model
from arena_distill.models.unpadded import without_padding

TRAINING_TARGET, SCORING_TARGET = 45.0, 60.0  # percent of the ceiling
PRODUCT, LONGEST, BATCH_TOKENS, STEP_ROWS = 8192, 2048, 16384, 8
STEPS, SCORED_ROWS, SMALL = 6, 96, 64  # --device cpu divides widths by SMALL
TOLERANCE = 0.05
NO_GPU = "not measured: there is no CUDA GPU here"


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions."""

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int

    def config(self, small: bool) -> Any:
        """For transformers; ``small`` to see whether code runs."""
        from transformers import AutoConfig

        part = SMALL if small else 1
        more = {"query_pre_attn_scalar": 256} if self.family == "gemma2" else {}
        return AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden // part,
            intermediate_size=self.inner // part,
            num_hidden_layers=2 if small else self.layers,
            num_attention_heads=2 if small else self.heads,
            num_key_value_heads=1 if small else self.key_heads,
            head_dim=16 if small else self.head,
            vocab_size=self.vocabulary // part,
            max_position_embeddings=8192,
            pad_token_id=0,
            num_labels=3,
            **more,
        )


STUDENT = Shape("gemma2", 3584, 14336, 42, 16, 8, 256, 256_000)
TEACHER = Shape("llama", 4096, 14336, 32, 32, 8, 128, 128_256)
EIGHT_BIT = Shape("llama", 2048, 8192, 16, 32, 8, 64, 128_256)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small shapes (default: cuda)")
    options = parser.parse_args()
    quiet_libraries()
    if options.device == "cuda" and not torch.cuda.is_available():
        row = Row("a student of 9B trains, a teacher of 8B scores", "GPU's matrix product", None, None, True, NO_GPU)
        finish("gpu", {"measured": None}, [row], options.quick)
        return 0
    small = options.device == "cpu"
    device = torch.device(options.device)
    ceiling = matmul_rate(device, 256 if small else PRODUCT)
    print(f"matrix product in bfloat16: {ceiling / 1e12:.1f} TFLOP/s", flush=True)
    lengths = chat_lengths(SCORED_ROWS)
    trained = {way: train(device, small, lengths, way == "unpadded") for way in ("unpadded", "padded")}
    scored = {way: score(device, small, lengths, way == "unpadded") for way in ("unpadded", "padded")}
    rows = [
        *lines("training, Gemma-2-9B's shape, LoRA, bf16", trained, ceiling, TRAINING_TARGET),
        *lines("scoring, Llama-3-8B's shape, bf16", scored, ceiling, SCORING_TARGET),
    ]
    if not small:
        rows.append(eight_bit(device))
    result = {"ceiling_tflops": ceiling / 1e12, "training": trained, "scoring": scored}
    finish("gpu", {"measured": result}, rows, options.quick or small)
    return 0


def chat_lengths(count: int) -> np.ndarray:
    """Tokens of chats, cut at 2,048."""
    from texts import row_lengths

    with tempfile.TemporaryDirectory() as directory:
        make_tiny_model("llama", sample_texts(), Path(directory), TinySize(32, 1, 2, 4000), seed=1)
        tokenizer = load_tokenizer(directory)
        return np.minimum(row_lengths(chat_rows(count, seed=3, tokenizer=tokenizer), tokenizer), LONGEST)


def matmul_rate(device: torch.device, size: int) -> float:
    """Operations a second of a bfloat16 matrix product, the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds_of(device, lambda: a @ b) for _ in range(10))


def seconds_of(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make(shape: Shape, device: torch.device, small: bool) -> Any:
    """A classifier of random weights in bfloat16, made where it will stay."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(shape.config(small), dtype=torch.bfloat16)


def batch_of(lengths: np.ndarray, vocabulary: int, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
    ids = torch.randint(1, vocabulary, mask.shape, generator=generator) * mask
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def linear_weights(model: Any) -> int:
    """Weights that every token is multiplied with; a LoRA factor is one of them."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def train(device: torch.device, small: bool, lengths: np.ndarray, unpadded: bool) -> dict[str, Any]:
    """Seconds of each step after the first two, and what they did."""
    model = make(STUDENT, device, small)
    model.config.use_cache = False
    model = add_lora(model, base="random", r=64, alpha=16, dropout=0.0, train_head=True)
    if unpadded:
        without_padding(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = np.random.default_rng(5)
    losses, seconds, tokens = [], [], []

    def step(rows: np.ndarray, number: int) -> None:
        batch = batch_of(rows, model.config.vocab_size, device, number)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(**batch).logits.float()
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(rows), device=device) % 3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    reset_memory(device)
    for number in range(STEPS):
        rows = generator.choice(lengths, STEP_ROWS, replace=False)
        seconds.append(seconds_of(device, partial(step, rows, number)))
        tokens.append(int(rows.sum()))
    rate = sum(tokens[2:]) / sum(seconds[2:])
    return figures(rate, 6 * linear_weights(model), losses[0], device)


def score(device: torch.device, small: bool, lengths: np.ndarray, unpadded: bool) -> dict[str, Any]:
    """All rows in batches of a number of tokens; the first pass is to warm up."""
    model = make(TEACHER, device, small).eval()
    if unpadded:
        without_padding(model)
    batches = token_budget_batches(lengths, BATCH_TOKENS)
    inputs = [batch_of(lengths[rows], model.config.vocab_size, device, n) for n, rows in enumerate(batches)]
    logits: list[torch.Tensor] = []

    def everything() -> None:
        logits[:] = [model(**batch).logits.float().cpu() for batch in inputs]

    reset_memory(device)
    with torch.inference_mode():
        everything()
        seconds = seconds_of(device, everything)
    return figures(int(lengths.sum()) / seconds, 2 * linear_weights(model), torch.cat(logits).tolist(), device)


def figures(rate: float, operations: int, result: Any, device: torch.device) -> dict[str, Any]:
    """Of one way."""
    return {
        "tokens_per_second": rate,
        "operations_per_token": operations,
        "result": result,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def lines(question: str, ways: dict[str, dict[str, Any]], ceiling: float, target: float) -> list[Row]:
    """Share of the ceiling, and how padding compares."""
    ours, padded = ways["unpadded"], ways["padded"]
    share = 100 * ours["tokens_per_second"] * ours["operations_per_token"] / ceiling
    apart = float(np.max(np.abs(np.subtract(ours["result"], padded["result"]))))
    memory = "" if ours["peak_gb"] is None else f"; {ours['peak_gb']:.1f} against {padded['peak_gb']:.1f} GB"
    rates = f"{ours['tokens_per_second']:,.0f} against {padded['tokens_per_second']:,.0f} tokens/s{memory}"
    ratio = ours["tokens_per_second"] / padded["tokens_per_second"]
    same = math.isfinite(apart) and apart <= TOLERANCE
    return [
        Row(question, "GPU's matrix product", share, target, same, f"real tokens; results within {apart:.0e}", "%"),
        Row(question, "the same, padded", ratio, None, same, rates),
    ]


def eight_bit(device: torch.device) -> Row:
    """Step 8's judge in bfloat16 and with 8-bit weights, on the same rows."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_tiny_model("llama", sample_texts(), directory, TinySize(32, 1, 2, 4000), seed=1)
        tokenizer = load_tokenizer(str(directory))
        make(EIGHT_BIT, device, False).save_pretrained(directory)
        TextFormat.for_tokenizer(tokenizer).save(directory)
        rows = chat_rows(SCORED_ROWS, seed=3, tokenizer=tokenizer)
        seconds, probabilities = {}, {}
        for quant in ("none", "int8"):
            judge = load_judge(directory, dtype="bfloat16", quant=quant, max_length=LONGEST, batch_rows=8)
            judge.logits(rows)
            wait(device)
            started = time.perf_counter()
            probabilities[quant] = torch.from_numpy(judge.logits(rows)).softmax(dim=1).numpy()
            seconds[quant] = time.perf_counter() - started
    apart = float(np.abs(probabilities["none"] - probabilities["int8"]).max())
    speed = ", ".join(f"{quant}: {len(rows) / value:.1f} rows/s" for quant, value in seconds.items())
    ratio = seconds["none"] / seconds["int8"]
    return Row(
        "step 8 with 8-bit weights, 1B, batches of 16,384 tokens", "our own bf16", ratio, None, apart < 0.1, speed
    )


if __name__ == "__main__":
    raise SystemExit(main())
