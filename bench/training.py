"""How fast students and teachers train: our trainer, beside Hugging Face's with random batches padded to the longest.

    python bench/training.py                  # minutes
    python bench/training.py --quick

The student is a BERT of 22M parameters, all of which train; the teacher a small Llama with LoRA. Both ways have the
same sequences (rows as long as real chats, cut at the length limit), rows a batch, learning rates, number of steps and
precision: bfloat16 autocast, or float32 where a CPU is faster so. Tokens of the rows are counted, not the padding.
Tokenizing and loading do not count.

Equality, twice. Before the clock starts, both train three steps on one batch of the same rows, without dropout: the
loss of every step must be within 0.5 %. Then, of the timed runs, the mean loss over the last third, which is one epoch
and so the same rows in both ways, within 2 %; there the order of the rows and what dropout draws differ. With so few
steps from random weights that says that both learn alike, not what they could learn.

What it does not show: several processes, GPUs, gradient accumulation, 4-bit bases.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import Measured, Peer, Row, Timed, arguments, finish, measure
from texts import chat_rows, sample_texts

from arena_distill.models.architecture import LINEAR_MODULES
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.instructions import has_bfloat16_products
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import NO_DROPOUT, TinySize, make_tiny_model
from arena_distill.training.arguments import Schedule, training_arguments
from arena_distill.training.datasets import make_dataset
from arena_distill.training.judge_model import Recipe, make_model
from arena_distill.training.losses import votes_loss
from arena_distill.training.resumable import train_resumably
from arena_distill.training.trainer import PreferenceDataset, PreferenceTrainer

ROWS, REPEATS, TARGET = 64, 1, 1.8
STEP_TOLERANCE, LOSS_TOLERANCE = 0.005, 0.02  # of the shared batch's loss; of the mean over the last third
POSITIONS = 1024
Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Case:
    """One training, as both ways do it."""

    name: str
    max_length: int  # tokens
    learning_rate: float  # peak
    lora_rank: int = 0  # 0: every weight trains
    lora_targets: tuple[str, ...] = LINEAR_MODULES
    batch_rows: int = 16
    epochs: int = 3
    warmup: float = 0.06
    weight_decay: float = 0.01
    seed: int = 0
    bf16: bool = field(default_factory=has_bfloat16_products)

    @property
    def recipe(self) -> Recipe:
        """Head, adapter and precision for our own code."""
        return Recipe(
            head="seq_cls",
            label_words=(),
            lora_r=self.lora_rank,
            lora_alpha=2 * self.lora_rank,
            lora_dropout=0.0,
            quant="none",
            bf16=self.bf16,
        )

    @property
    def schedule(self) -> Schedule:
        """Likewise."""
        return Schedule(
            epochs=self.epochs,
            max_steps=0,
            batch_size=self.batch_rows,
            grad_accum=1,
            learning_rate=self.learning_rate,
            warmup_ratio=self.warmup,
            weight_decay=self.weight_decay,
            seed=self.seed,
            bf16=self.bf16,
        )


CASES = (
    Case("student, BERT 22M", max_length=512, learning_rate=1e-4),  # the length limit of main.py
    Case("teacher, Llama + LoRA", max_length=1024, learning_rate=2e-4, lora_rank=16),  # and of step 3
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="of an epoch (default: %(default)s)")
    options = parser.parse_args()
    usual = options.rows == ROWS
    if options.quick:
        options.rows = 16
    quiet_libraries()
    results, lines = {}, []
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            result = train_both(case, Path(temporary), options.rows, options.quick)
        results[case.name] = result
        lines.append(line_of(case, result))
    finish("training", {"measured": results}, lines, options.quick or not usual)
    return 0


def train_both(case: Case, directory: Path, count: int, quick: bool) -> dict[str, Any]:
    """Train both ways, and compare."""
    base = directory / "base"
    parameters = write_teacher(base) if case.lora_rank else write_student(base, layers=2 if quick else 6)
    model = make_model(str(base), str(base), case.recipe)
    rows = chat_rows(count, tokenizer=model.tokenizer, median=100 if quick else 350)
    data = make_dataset(rows, model.tokenizer, model.layout, case.max_length, swap_too=False)
    write_sequences(data, directory / "rows.parquet")
    print(f"\n{case.name}: {parameters:,} parameters, {count} rows of {data.lengths.mean():.0f} tokens", flush=True)
    shared: Curves = {}
    recipe = json.dumps(asdict(case))
    with Peer("peer_training.py", base, directory / "rows.parquet", directory / "peer", recipe) as peer:

        def theirs(some: int, dropout: bool) -> Timed:
            answer = peer(f"{some}:{int(dropout)}")
            return Timed(answer["losses"], answer["seconds"])

        def one_batch() -> None:
            shared["ours"] = train(case, base, first(data, case.batch_rows), directory, dropout=False).result
            shared["trainer"] = theirs(case.batch_rows, dropout=False).result

        ways = {
            "ours": lambda: train(case, base, data, directory, dropout=True),
            "trainer": lambda: theirs(count, dropout=True),
        }
        measured = measure(ways, REPEATS, one_batch)
    return {
        "parameters": parameters,
        "recipe": asdict(case),
        "rows": count,
        "tokens_of_an_epoch": int(data.lengths.sum()),
        "padding_of_random_batches": padding(data.lengths, case.batch_rows),
        **figures(measured, shared, case, int(data.lengths.sum())),
    }


def write_student(directory: Path, layers: int) -> int:
    """An untrained BERT as large as MiniLM; the tokenizer is trained on the sample and knows fewer tokens than it."""
    from transformers import BertConfig, BertForSequenceClassification

    make_tiny_model("bert", sample_texts(), directory, TinySize(layers=1, positions=POSITIONS), seed=1)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=POSITIONS,
        attention_probs_dropout_prob=NO_DROPOUT,
        pad_token_id=load_tokenizer(str(directory)).pad_token_id,
        num_labels=3,
    )
    return save_untrained(BertForSequenceClassification, config, directory)


def write_teacher(directory: Path) -> int:
    """A small Llama of random weights with a classification head."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    make_tiny_model("llama", sample_texts(), directory, TinySize(64, 1, 2, 4000, POSITIONS), seed=1)
    tokenizer = load_tokenizer(str(directory))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=1344,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=3,
    )
    return save_untrained(LlamaForSequenceClassification, config, directory)


def save_untrained(kind: Any, config: Any, directory: Path) -> int:
    """Both ways start from the same weights, the head's among them; returns how many."""
    torch.manual_seed(1)
    model = kind(config)
    model.save_pretrained(directory)
    return int(model.num_parameters())


def write_sequences(data: PreferenceDataset, file: Path) -> None:
    """The very tokens that our trainer gets, with the class voted for."""
    numbers = range(len(data))
    columns: dict[str, Any] = {"input_ids": [data.sequences.ids[row].tolist() for row in numbers]}
    if (segments := data.sequences.segment_ids) is not None:
        columns["token_type_ids"] = [segments[row].tolist() for row in numbers]
    pq.write_table(pa.table({**columns, "label": data.targets.argmax(dim=1).numpy()}), file)


def first(data: PreferenceDataset, count: int) -> PreferenceDataset:
    """Some rows."""
    return PreferenceDataset(data.sequences.take(np.arange(count)), data.targets[:count].numpy())


def train(case: Case, base: Path, data: PreferenceDataset, directory: Path, dropout: bool) -> Timed:
    """Our way, as the stages do it: seconds of the training, and the loss of every step."""
    from transformers import set_seed

    set_seed(case.seed)
    student = make_model(str(base), str(base), case.recipe)
    if not dropout:
        for module in student.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    with tempfile.TemporaryDirectory(dir=directory) as work:
        every_step = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 1}
        trainer = PreferenceTrainer(
            model=student.model,
            args=training_arguments(Path(work), "bench", Path(work), case.schedule, **every_step),
            train_dataset=data,
            processing_class=student.tokenizer,
            pad_id=student.tokenizer.pad_token_id,
            loss=votes_loss(),
        )
        started = time.perf_counter()
        train_resumably(trainer, Path(work), case.name)
        seconds = time.perf_counter() - started
    return Timed([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seconds)


def padding(lengths: np.ndarray, batch_rows: int) -> float:
    """Tokens with padding by tokens, of random batches padded to their longest row; mean over a hundred orders."""
    rng = np.random.default_rng(0)
    padded = 0
    for _ in range(100):
        order = rng.permutation(lengths)
        pieces = [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
        padded += sum(len(piece) * int(piece.max()) for piece in pieces)
    return round(padded / (100 * int(lengths.sum())), 3)


def figures(measured: Measured, shared: Curves, case: Case, tokens: int) -> dict[str, Any]:
    """Rates, the ratio, and how far the loss curves are apart."""
    curves = {way: [round(value, 4) for value in values] for way, values in measured.results.items()}
    epochs = {
        way: [round(float(part.mean()), 4) for part in np.array_split(np.array(values), case.epochs)]
        for way, values in curves.items()
    }
    a, b = np.array(shared["ours"]), np.array(shared["trainer"])
    last = {way: values[-1] for way, values in epochs.items()}
    return {
        "seconds": {way: [round(value, 2) for value in values] for way, values in measured.seconds.items()},
        "tokens_per_second": {way: round(tokens * case.epochs / measured.median(way)) for way in measured.seconds},
        "ratio": measured.ratios("trainer", "ours"),
        "shared_batch": {
            "loss_of_each_step": {way: [round(value, 5) for value in values] for way, values in shared.items()},
            "largest_difference": round(float(np.max(np.abs(a - b) / b)), 6) if len(a) == len(b) else None,
        },
        "loss_of_each_epoch": epochs,
        "difference_in_last_epoch": round(abs(last["ours"] - last["trainer"]) / last["trainer"], 4),
        "loss_of_each_step": curves,
    }


def line_of(case: Case, result: dict[str, Any]) -> Row:
    rate, losses, shared = result["tokens_per_second"], result["loss_of_each_epoch"], result["shared_batch"]
    alike = shared["largest_difference"] is not None and shared["largest_difference"] <= STEP_TOLERANCE
    same_steps = len({len(values) for values in result["loss_of_each_step"].values()}) == 1
    return Row(
        f"training, {case.name}",
        "HF Trainer, random batches",
        result["ratio"]["median"],
        TARGET,
        alike and same_steps and result["difference_in_last_epoch"] <= LOSS_TOLERANCE,
        f"{rate['ours']:,} against {rate['trainer']:,} tokens/s in {'bf16' if result['recipe']['bf16'] else 'fp32'}; "
        f"random batches have {result['padding_of_random_batches']:.2f} times the tokens; loss of the epochs "
        f"{losses['ours'][0]:.3f} to {losses['ours'][-1]:.3f} against "
        f"{losses['trainer'][0]:.3f} to {losses['trainer'][-1]:.3f}; of one shared batch "
        f"{100 * (shared['largest_difference'] or 0):.2f} % apart",
    )


if __name__ == "__main__":
    raise SystemExit(main())
