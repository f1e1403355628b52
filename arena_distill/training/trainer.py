"""Hugging Face Trainer on preference rows: length-grouped batches, soft targets, honest rates, resumable runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from arena_distill.data.prompts import Sequences
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.models.classifier import HEAD_MODULES, pad_batch
from arena_distill.runtime import heartbeat
from arena_distill.runtime.artifacts import write_atomically
from arena_distill.runtime.errors import SettingsError
from arena_distill.runtime.interruption import obey_parent_only
from arena_distill.runtime.progress import Progress
from arena_distill.training.losses import DistillationLoss

LOG_LOSS = "log_loss"
TEACHER_LOGITS = "teacher_logits"
BUCKET_BATCHES = 32  # batches that are sorted by length together: little padding, and still well mixed


class PreferenceDataset(Dataset):
    """Token sequences with class targets. An item is this data set and a row number; ``collate`` makes the tensors.

    Args:
        sequences: N of them.
        targets: votes, ``[N, 3]``.
        teacher_logits: what K teachers say, raw, ``[N, K, 3]``, NaN where one has no say; None: no teachers.
    """

    def __init__(self, sequences: Sequences, targets: np.ndarray, teacher_logits: np.ndarray | None = None) -> None:
        assert len(sequences) == len(targets)
        self.sequences = sequences
        self.targets = _float32(targets)
        self.teacher_logits = None if teacher_logits is None else _float32(teacher_logits)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, row: int) -> tuple[PreferenceDataset, int]:
        return self, int(row)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, ``[N]``."""
        return self.sequences.ids.lengths

    def longest_first(self) -> PreferenceDataset:
        """The same rows sorted by length, so that evaluation wastes nothing on padding."""
        order = np.argsort(-self.lengths, kind="stable")
        said = None if self.teacher_logits is None else self.teacher_logits.numpy()[order]
        return PreferenceDataset(self.sequences.take(order), self.targets.numpy()[order], said)


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def collate(items: Sequence[tuple[PreferenceDataset, int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Model inputs of items of one data set, with ``labels`` (``[B, 3]``) and, if any, ``teacher_logits``."""
    data, rows = items[0][0], np.array([row for _, row in items])
    batch = {**pad_batch(data.sequences, rows, pad_id), "labels": data.targets[rows]}
    if data.teacher_logits is not None:
        batch[TEACHER_LOGITS] = data.teacher_logits[rows]
    return batch


class LengthGroupedSampler(Sampler[int]):
    """A random order in which every batch holds rows of similar length.

    Rows are shuffled, cut into buckets of a few batches, sorted by length inside each bucket, and the batches are
    shuffled. The order depends on seed and epoch alone, so a resumed run sees what an uninterrupted one would have.

    Args:
        lengths: tokens of each row, ``[N]``.
        batch_size: rows of an optimizer step, over all processes.
        seed: of the order.
        whole_batches: fill the last batch with rows of the same epoch, so that any number of processes can share it
            alike; else it is short.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, whole_batches: bool = False) -> None:
        self.lengths, self.batch_size, self.seed, self.whole_batches = lengths, batch_size, seed, whole_batches
        self.epoch = 0

    def __len__(self) -> int:
        rows = len(self.lengths)
        return -(-rows // self.batch_size) * self.batch_size if self.whole_batches else rows

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        order = np.resize(order, len(self))  # repeats from the start where whole batches need more rows
        bucket = self.batch_size * BUCKET_BATCHES
        batches: list[np.ndarray] = []
        for start in range(0, len(order), bucket):
            rows = order[start : start + bucket]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
        last = [batches.pop()] if len(order) % self.batch_size else []  # a short batch must stay at the end
        for index in [*generator.permutation(len(batches)), *range(len(batches), len(batches) + len(last))]:
            yield from [*batches, *last][index].tolist()


class GroupedTrainer(Trainer):
    """Trainer with our sampler, and without the prints of Hugging Face's; its data sets have ``lengths``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_SetSamplerEpoch(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data: Any = train_dataset if train_dataset is not None else self.train_dataset
        step_rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.train_sampler = LengthGroupedSampler(data.lengths, step_rows, self.args.seed, whole_batches=True)
        return self.train_sampler

    def get_train_dataloader(self) -> DataLoader:
        """Hugging Face's, with processes that live on when a signal is for all."""
        return _with_lasting_processes(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Likewise."""
        return _with_lasting_processes(super().get_eval_dataloader(eval_dataset))

    def take_best_of(self, checkpoint: Path) -> None:
        """End as a finished run does: with its state, and its best weights loaded."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_best_model()


def _with_lasting_processes(loader: DataLoader) -> DataLoader:
    inner = getattr(loader, "base_dataloader", loader)  # what accelerate has wrapped
    inner.worker_init_fn = partial(_begin_process, inner.worker_init_fn)
    return loader


def _begin_process(begin: Callable[[int], None] | None, number: int) -> None:
    obey_parent_only()
    if begin is not None:
        begin(number)


class PreferenceTrainer(GroupedTrainer):
    """Trainer on votes and teachers; everything but sampler, loss and the head's rate is Hugging Face's.

    Args:
        pad_id: padding token.
        loss: of a row.
        head_learning_rate: peak rate of the classification head; 0: as the rest.
        options: of the Trainer.
    """

    def __init__(self, *, pad_id: int, loss: DistillationLoss, head_learning_rate: float = 0.0, **options: Any) -> None:
        self._row_loss, self._head_learning_rate = loss, head_learning_rate
        self._teacher_logits: torch.Tensor | None = None  # of the batch at hand
        super().__init__(
            data_collator=partial(collate, pad_id=pad_id),
            compute_loss_func=self._loss,
            compute_metrics=log_loss_metrics,
            **options,
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Take the teachers out of the batch, which the model would not know what to do with."""
        self._teacher_logits = inputs.pop(TEACHER_LOGITS, None)
        return super().compute_loss(model, inputs, *args, **options)

    def _loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        progress = self.state.global_step / max(1, self.state.max_steps)
        losses = self._row_loss(outputs["logits"], labels, self._teacher_logits, progress)
        if num_items_in_batch is None:
            return losses.mean()
        # The Trainer counts label elements over all accumulated batches: dividing by rows weighs every row alike.
        return losses.sum() * labels.shape[-1] / num_items_in_batch

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Hugging Face's, with groups of their own for the head's parameters if it has a rate of its own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if self._head_learning_rate:
            head = {id(p) for name, p in (model or self.model).named_parameters() if is_head(name)}
            for group in list(optimizer.param_groups):
                apart = [p for p in group["params"] if id(p) in head]
                if apart:
                    group["params"] = [p for p in group["params"] if id(p) not in head]
                    optimizer.add_param_group({**group, "params": apart, "lr": self._head_learning_rate})
        return optimizer


def is_head(parameter: str) -> bool:
    """Whether a parameter's full name says that it belongs to the classification head."""
    return not set(HEAD_MODULES).isdisjoint(parameter.split("."))


class _SetSamplerEpoch(TrainerCallback):
    """Tells the sampler its epoch by the step count: data loaders lose it when they skip rows in a resumed run."""

    def __init__(self, trainer: GroupedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        sampler = self.trainer.train_sampler
        rows_per_step = sampler.batch_size
        sampler.epoch = state.global_step // -(-len(sampler) // rows_per_step)


def log_loss_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Kaggle log loss and the other scores of the evaluation rows."""
    logits = np.asarray(prediction.predictions, np.float64)
    if not np.isfinite(logits).all():
        raise SettingsError("training diverged: the logits are not finite -> lower the learning rate")
    scores = score(softmax(logits), np.asarray(prediction.label_ids, np.float64))
    return {LOG_LOSS: scores.log_loss, "accuracy": scores.accuracy, "ece": scores.ece}


class ProgressReport(TrainerCallback):
    """Rows/s, tokens/s and time left while training, one line per evaluation, and what checkpoints would keep."""

    def __init__(self, rows_per_step: int) -> None:
        self.rows_per_step = rows_per_step
        self.progress: Progress | None = None
        self._tokens = self._saved_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Start the clock."""
        if not state.is_world_process_zero:
            return
        self.progress = Progress(
            "training",
            state.max_steps * self.rows_per_step,
            rows_before=state.global_step * self.rows_per_step,
            rows_per_step=self.rows_per_step,
        )
        self._tokens, self._saved_step = int(state.num_input_tokens_seen), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Count one optimizer step."""
        if self.progress is None:
            return
        seen = int(state.num_input_tokens_seen)
        self.progress.update(self.rows_per_step, seen - self._tokens)
        self._tokens = seen

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """A step may take minutes."""
        if self.progress is not None:
            self.progress.beat()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        """So may an evaluation."""
        if self.progress is not None:
            self.progress.beat()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Count the steps that the new checkpoint keeps."""
        if self.progress is not None:
            heartbeat.keep(state.global_step - self._saved_step)
            self._saved_step = state.global_step

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kw: Any
    ) -> None:
        """Say how the calibration rows score."""
        if metrics and state.is_world_process_zero:
            print(
                f"step {state.global_step:>6,}  epoch {state.epoch or 0:5.2f}  "
                f"log loss {metrics['eval_log_loss']:.4f}  accuracy {metrics['eval_accuracy']:.3f}",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.close()


_CHECKPOINT_FILES = (("trainer_state.json",), ("optimizer.pt", "optimizer.bin"), ("scheduler.pt",))
"""Alternatives of each; under FSDP the optimizer's file has another name."""


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones, which a kill leaves behind, are removed.

    The Trainer writes ``trainer_state.json`` last, so a readable one means that the files before it are whole.
    """
    whole: list[Path] = []
    for path in directory.glob("checkpoint-*"):
        if _is_whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_finished(checkpoint: Path) -> bool:
    """Whether the run had come to its end, by steps or by early stopping, when it wrote ``checkpoint``.

    The Trainer forgets the latter when it resumes, and would train on past the stop.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    control: Any = (state.stateful_callbacks or {}).get("TrainerControl", {})
    return state.global_step >= state.max_steps or bool(control.get("args", {}).get("should_training_stop"))


def localize_best(checkpoint: Path) -> None:
    """Make the best checkpoint, whose place is recorded as a path, the one beside ``checkpoint``.

    After a move the Trainer would only warn, and keep the last weights. A best one that is gone is forgotten.
    """
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text("utf-8"))
    recorded = state.get("best_model_checkpoint")
    if recorded is None:
        return
    beside = checkpoint.parent / Path(recorded).name
    whole = beside.is_dir() and _is_whole(beside)
    if whole and Path(recorded) == beside:
        return
    state["best_model_checkpoint"] = str(beside) if whole else None
    if not whole:
        state["best_metric"] = state["best_global_step"] = None
    write_atomically(file, json.dumps(state, indent=2, sort_keys=True) + "\n")


def _is_whole(checkpoint: Path) -> bool:
    weights = list(checkpoint.glob("*.safetensors"))
    if not weights or not any(checkpoint.glob("rng_state*.pth")):
        return False
    for file in weights:
        try:
            with safe_open(file, "pt"):  # reads the header, and checks the file's length against it
                pass
        except (OSError, SafetensorError):
            return False
    if not all(any((checkpoint / name).is_file() for name in names) for names in _CHECKPOINT_FILES):
        return False
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except ValueError:
        return False
    return True
