"""What the Trainer does differently from Hugging Face's: the head's rate, teachers in batches, the loss of a step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from arena_distill.data.loading import load_labelled
from arena_distill.data.merging import as_extra
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows, targets
from arena_distill.models.adapters import add_lora
from arena_distill.models.classifier import load_classifier, load_tokenizer, token_types
from arena_distill.training import arguments as training_arguments_module
from arena_distill.training.arguments import Schedule, training_arguments
from arena_distill.training.datasets import make_dataset
from arena_distill.training.losses import DistillationLoss, votes_loss
from arena_distill.training.soft_labels import SoftLabels
from arena_distill.training.temperature_schedule import TemperatureSchedule
from arena_distill.training.trainer import (
    TEACHER_LOGITS,
    PreferenceDataset,
    PreferenceTrainer,
    collate,
    is_head,
    last_whole_checkpoint,
    localize_best,
)

MAX_LENGTH = 48
LOSS = DistillationLoss(
    alpha=0.6,
    temperature=TemperatureSchedule(5.0, 1.0),
    mse_weight=0.7,
    cosine_weight=0.3,
    label_smoothing=0.05,
    teacher_weights=(1.0, 2.0),
)


@pytest.fixture(scope="module")
def rows(small_train_csv: Path) -> Rows:
    return load_labelled(small_train_csv).rows


@pytest.fixture(scope="module")
def still(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BERT checkpoint without dropout: two passes over a row say the same."""
    copy = Path(shutil.copytree(backbones / "bert", tmp_path_factory.mktemp("still") / "bert"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def teachers(rows: Rows) -> SoftLabels:
    """Two, of which one is silent on some rows and both on others."""
    logits = np.random.default_rng(0).normal(0, 3, (len(rows), 2, 3)).astype(np.float32)
    logits[::3, 0] = np.nan
    logits[::4] = np.nan
    return SoftLabels(("one", "two"), logits, (1.0, 2.0))


def classifier(base: Path, lora: bool = False) -> Any:
    torch.manual_seed(0)
    model = load_classifier(str(base), load_tokenizer(str(base)))[0]
    return add_lora(model, base=str(base), r=2, alpha=4, dropout=0.0, train_head=True) if lora else model


def dataset_of(rows: Rows, base: Path, teachers: SoftLabels | None, swap_too: bool = False) -> PreferenceDataset:
    tokenizer = load_tokenizer(str(base))
    layout = TextFormat.for_tokenizer(tokenizer, token_types(classifier(base)))
    return make_dataset(rows, tokenizer, layout, MAX_LENGTH, swap_too, teachers)


def trainer_of(
    model: Any,
    data: PreferenceDataset,
    work: Path,
    *,
    loss: DistillationLoss = LOSS,
    head_rate: float = 0.0,
    **more: Any,
) -> PreferenceTrainer:
    schedule = {
        "epochs": 1, "max_steps": 0, "batch_size": 8, "grad_accum": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0,
        "weight_decay": 0.01, "seed": 3, "bf16": False,
    }  # fmt: skip
    given = {key: more.pop(key) for key in list(more) if key in schedule}
    arguments = training_arguments(work, "x", work, Schedule(**schedule | given), save_strategy="no", **more)
    pad_id = int(model.config.pad_token_id)
    return PreferenceTrainer(
        model=model, args=arguments, train_dataset=data, pad_id=pad_id, loss=loss, head_learning_rate=head_rate
    )


# 16 bits on a CPU


@pytest.mark.parametrize(("has_products", "bf16"), [(False, True), (True, True), (False, False)])
def test_a_cpu_without_instructions_for_16_bits_is_told_of(
    has_products: bool, bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_arguments_module, "has_bfloat16_products", lambda: has_products)
    training_arguments(tmp_path, "x", tmp_path, Schedule(1, 0, 8, 1, 1e-3, 0.0, 0.01, 3, bf16), save_strategy="no")
    assert ("_BF16=0" in capsys.readouterr().out) == (bf16 and not has_products)


# The head's own rate


def test_a_parameter_is_the_heads_by_a_whole_part_of_its_name() -> None:
    of_head = [
        "score.weight", "classifier.out_proj.bias", "bert.pooler.dense.weight", "pre_classifier.bias",
        "base_model.model.score.modules_to_save.default.weight",
    ]  # fmt: skip
    of_body = ["model.score_bias", "bert.encoder.classifiers.0.weight", "model.layers.0.mlp.up_proj.weight", "scored"]
    assert all(map(is_head, of_head)) and not any(map(is_head, of_body))


def groups_by_name(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, list[tuple[float, float]]]:
    """Rate and weight decay of every group that a parameter is in, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[tuple[float, float]]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(names[id(parameter)], []).append((group["lr"], group["weight_decay"]))
    return found


@pytest.mark.parametrize(("family", "lora"), [("bert", False), ("bert", True), ("llama", True), ("llama", False)])
def test_every_trained_parameter_is_in_one_group_and_the_head_at_its_own_rate(
    family: str, lora: bool, backbones: Path, rows: Rows, tmp_path: Path
) -> None:
    data = dataset_of(rows, backbones / family, None)
    plain, own = (
        trainer_of(classifier(backbones / family, lora), data, tmp_path, head_rate=rate) for rate in (0.0, 5e-2)
    )
    before, after = (groups_by_name(t.create_optimizer(), t.model) for t in (plain, own))
    trained = {name for name, parameter in own.model.named_parameters() if parameter.requires_grad}
    assert before.keys() == after.keys() == trained
    assert all(len(groups) == 1 for groups in after.values())
    heads = {name for name in trained if is_head(name)}
    assert heads and heads < trained
    for name, [(rate, decay)] in after.items():
        assert rate == (5e-2 if name in heads else 1e-3), name
        assert decay == before[name][0][1], name
    assert {decay for [(_, decay)] in before.values()} == ({0.01} if family == "llama" and lora else {0.0, 0.01})


@pytest.mark.parametrize("lora", [False, True])
def test_without_a_rate_of_its_own_the_groups_are_hugging_faces(
    lora: bool, still: Path, rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(classifier(still, lora), dataset_of(rows, still, None), tmp_path)
    plain = Trainer(model=trainer.model, args=trainer.args).create_optimizer()
    ours = trainer.create_optimizer()
    assert type(ours) is type(plain) and len(ours.param_groups) == len(plain.param_groups)
    for one, other in zip(ours.param_groups, plain.param_groups, strict=True):
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]
        assert {key: one[key] for key in one if key != "params"} == {
            key: other[key] for key in other if key != "params"
        }


def test_asked_twice_there_is_one_optimizer_and_the_head_is_not_split_again(
    still: Path, rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(classifier(still), dataset_of(rows, still, None), tmp_path, head_rate=0.1)
    first = trainer.create_optimizer()
    groups = len(first.param_groups)
    assert trainer.create_optimizer() is first and len(first.param_groups) == groups


def test_both_rates_follow_the_schedule_and_the_head_moves_by_its_own(
    still: Path, rows: Rows, teachers: SoftLabels, tmp_path: Path
) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    model = classifier(still)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = dataset_of(rows.slice(0, 32), still, teachers)
    trainer = trainer_of(model, data, tmp_path, head_rate=1e-2, max_steps=4, weight_decay=0.0, logging_steps=1)
    trainer.train()
    scheduler: Any = trainer.lr_scheduler
    assert sorted(set(scheduler.base_lrs)) == [1e-3, 1e-2]
    assert set(scheduler.get_last_lr()) == {0.0}, "linear to zero, for both"
    moved = {name: float((p.detach() - start[name]).abs().max()) for name, p in model.named_parameters()}
    assert 1e-2 < moved["classifier.bias"] < 4e-2
    assert max(length for name, length in moved.items() if not is_head(name)) < 4e-3


# Data sets and batches


def test_rows_in_both_orders_have_votes_and_teachers_turned_round_together(
    rows: Rows, teachers: SoftLabels, still: Path
) -> None:
    some = rows.take([5, 0, 4, 9])
    data = dataset_of(some, still, teachers, swap_too=True)
    assert len(data) == 8 and data.teacher_logits is not None
    votes, said = data.targets.numpy(), data.teacher_logits.numpy()
    np.testing.assert_array_equal(votes[:4], targets(some).astype(np.float32))
    np.testing.assert_array_equal(said[:4], teachers.of(some))
    for values in (votes, said):
        np.testing.assert_array_equal(values[4:, ..., 0], values[:4, ..., 1])
        np.testing.assert_array_equal(values[4:, ..., 1], values[:4, ..., 0])
        np.testing.assert_array_equal(values[4:, ..., 2], values[:4, ..., 2])
    tokenizer = load_tokenizer(str(still))
    layout = TextFormat.for_tokenizer(tokenizer, token_types(classifier(still)))
    for number, swap in enumerate((False, True)):
        sequences, place = assemble(tokenize_rows(some, tokenizer), layout, [View(MAX_LENGTH, swap)])
        for row in range(4):
            np.testing.assert_array_equal(data.sequences.ids[4 * number + row], sequences.ids[place[0, row]])
    assert any(len(set(vote.tolist())) > 1 and vote[0] != vote[1] for vote in votes), "else turning shows nothing"


@pytest.mark.parametrize("swap_too", [False, True])
def test_extra_rows_are_silent_in_a_data_set_and_without_teachers_there_is_nothing(
    swap_too: bool, rows: Rows, teachers: SoftLabels, still: Path
) -> None:
    data = dataset_of(as_extra(rows.slice(0, 6)), still, teachers, swap_too)
    assert data.teacher_logits is not None and bool(torch.isnan(data.teacher_logits).all())
    assert dataset_of(rows.slice(0, 6), still, None, swap_too).teacher_logits is None


def test_a_batch_carries_votes_and_teachers_of_exactly_its_rows(rows: Rows, teachers: SoftLabels, still: Path) -> None:
    data = dataset_of(rows, still, teachers)
    chosen = [7, 0, 159, 7, 3]
    batch = collate([data[row] for row in chosen], pad_id=0)
    np.testing.assert_array_equal(batch[TEACHER_LOGITS].numpy(), teachers.logits[chosen])
    np.testing.assert_array_equal(batch["labels"].numpy(), targets(rows)[chosen].astype(np.float32))
    assert batch[TEACHER_LOGITS].shape == (5, 2, 3) and batch[TEACHER_LOGITS].dtype == torch.float32
    for place, row in enumerate(chosen):
        length = int(batch["attention_mask"][place].sum())
        np.testing.assert_array_equal(batch["input_ids"][place, :length].numpy(), data.sequences.ids[row])
    assert TEACHER_LOGITS not in collate([dataset_of(rows, still, None)[0]], pad_id=0)


def test_sorting_by_length_keeps_rows_votes_and_teachers_together(
    rows: Rows, teachers: SoftLabels, still: Path
) -> None:
    data = dataset_of(rows, still, teachers)
    ordered = data.longest_first()
    assert (np.diff(ordered.lengths) <= 0).all() and (np.diff(data.lengths) > 0).any()

    def items(of: PreferenceDataset) -> list[tuple[bytes, bytes, bytes]]:
        said = of.teacher_logits
        assert said is not None
        parts = (of.targets.numpy(), said.numpy())
        return sorted(
            (of.sequences.ids[row].tobytes(), *(part[row].tobytes() for part in parts)) for row in range(len(of))
        )

    assert items(ordered) == items(data)


# The loss of a step


def reference_loss(model: Any, batch: dict[str, torch.Tensor], loss: DistillationLoss, progress: float) -> torch.Tensor:
    """``[B]``, straight from the loss."""
    inputs = {name: batch[name] for name in batch if name not in ("labels", TEACHER_LOGITS)}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    return loss(logits, batch["labels"], batch.get(TEACHER_LOGITS), progress)


def test_the_trainers_loss_of_a_batch_is_the_mean_over_its_rows(
    rows: Rows, teachers: SoftLabels, still: Path, tmp_path: Path
) -> None:
    data = dataset_of(rows, still, teachers)
    trainer = trainer_of(classifier(still), data, tmp_path)
    batch = collate([data[row] for row in range(16)], trainer.model.config.pad_token_id)
    expected = reference_loss(trainer.model, batch, LOSS, 0.0)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)).detach(), expected.mean())
    votes = reference_loss(trainer.model, batch, votes_loss(LOSS.label_smoothing), 0.0)
    assert abs(float(expected.mean() - votes.mean())) > 1e-2, "the teachers must show"
    # As parts of a larger step: each part divided by all rows of the step, so that they add up to its mean.
    elements = torch.tensor(16 * 3)
    parts = []
    for rows_of_part in (range(4), range(4, 16)):
        part = collate([data[row] for row in rows_of_part], trainer.model.config.pad_token_id)
        parts.append(trainer.compute_loss(trainer.model, part, num_items_in_batch=elements).detach())
    torch.testing.assert_close(sum(parts), expected.mean())


def test_a_batch_without_teachers_after_one_with_them_has_its_votes_alone(
    rows: Rows, teachers: SoftLabels, still: Path, tmp_path: Path
) -> None:
    """Evaluation rows carry no teachers: those of the training batch before must not linger."""
    with_them, without = (dataset_of(rows, still, said) for said in (teachers, None))
    trainer = trainer_of(classifier(still), with_them, tmp_path)
    pad_id = trainer.model.config.pad_token_id
    trainer.compute_loss(trainer.model, collate([with_them[row] for row in range(8)], pad_id))
    batch = collate([without[row] for row in range(8)], pad_id)
    expected = reference_loss(trainer.model, batch, votes_loss(LOSS.label_smoothing), 0.0).mean()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)).detach(), expected)


@pytest.mark.parametrize("loss", [LOSS, votes_loss(0.1)], ids=["distillation", "votes"])
@pytest.mark.parametrize("max_steps", [1, 3])
def test_two_batches_of_4_a_step_train_as_one_of_8(
    max_steps: int, loss: DistillationLoss, rows: Rows, teachers: SoftLabels, still: Path, tmp_path: Path
) -> None:
    """Under SGD, in which a wrong factor of the gradient shows."""
    data = dataset_of(rows, still, teachers)
    trained = []
    for batch_size, grad_accum in ((8, 1), (4, 2), (2, 4)):
        model = classifier(still)
        options: dict[str, Any] = {"batch_size": batch_size, "grad_accum": grad_accum, "max_steps": max_steps}
        trainer_of(
            model, data, tmp_path, loss=loss, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, **options
        ).train()
        trained.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    start = dict(classifier(still).named_parameters())
    assert (trained[0]["classifier.weight"] - start["classifier.weight"]).abs().max() > 1e-4
    for name, whole in trained[0].items():
        for parts in trained[1:]:
            np.testing.assert_allclose(parts[name], whole, rtol=0, atol=1e-6, err_msg=name)


def test_one_step_follows_the_gradient_of_the_mean_loss_of_its_rows(
    rows: Rows, teachers: SoftLabels, still: Path, tmp_path: Path
) -> None:
    some = rows.slice(0, 8)
    data = dataset_of(some, still, teachers)
    model, reference = classifier(still), classifier(still).train()
    trainer_of(model, data, tmp_path, learning_rate=0.1, weight_decay=0.0, optim="sgd", max_grad_norm=0.0).train()
    batch = collate([data[row] for row in range(8)], reference.config.pad_token_id)
    votes, said = batch.pop("labels"), batch.pop(TEACHER_LOGITS)
    LOSS(reference(**batch).logits, votes, said, progress=0.0).mean().backward()
    for (name, trained), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert expected.grad is not None
        wanted = (expected - 0.1 * expected.grad).detach()
        np.testing.assert_allclose(trained.detach(), wanted, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_temperature_falls_with_the_share_of_steps_that_are_done(
    grad_accum: int, rows: Rows, teachers: SoftLabels, still: Path, tmp_path: Path
) -> None:
    """At a rate of zero the model stays, so that only the temperature moves the loss of the same 8 rows."""
    steps = 4
    data = dataset_of(rows.slice(0, 8), still, teachers)
    trainer = trainer_of(
        classifier(still), data, tmp_path, learning_rate=0.0, max_steps=steps, logging_steps=1,
        batch_size=8 // grad_accum, grad_accum=grad_accum,
    )  # fmt: skip
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    batch = collate([data[row] for row in range(8)], trainer.model.config.pad_token_id)
    expected = []
    for temperature in (5.0, 4.0, 3.0, 2.0):
        constant = replace(LOSS, temperature=TemperatureSchedule(temperature, temperature))
        expected.append(float(reference_loss(trainer.model, batch, constant, 0.0).mean()))
    assert np.abs(np.diff(expected)).min() > 1e-3, "each temperature must show"
    np.testing.assert_allclose(logged, expected, atol=2e-4)


# The best checkpoint after a move


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows: Rows, teachers: SoftLabels, still: Path) -> Path:
    """The checkpoints of a short run whose best evaluation is not its last; not to be changed."""
    work = tmp_path_factory.mktemp("run")
    data, model = dataset_of(rows.slice(0, 64), still, teachers), classifier(still)
    evaluation = dataset_of(rows.slice(64, 16), still, None)
    arguments = training_arguments(
        work / "training", "x", work,
        Schedule(1, 6, 8, 1, 3e-2, 0.0, 0.0, 3, False),
        save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="log_loss", greater_is_better=False,
    )  # fmt: skip
    arguments.save_total_limit = 2  # with 1 a finished run keeps its best checkpoint alone; a killed one has both
    trainer = PreferenceTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=evaluation,
        pad_id=model.config.pad_token_id,
        loss=LOSS,
    )
    trainer.train()
    assert Path(str(trainer.state.best_model_checkpoint)).name != "checkpoint-6"
    return work / "training"


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Last and best checkpoint of the same run in another place."""
    place = Path(shutil.copytree(run, tmp_path / "elsewhere" / "training"))
    last = last_whole_checkpoint(place)
    assert last is not None and last.name == "checkpoint-6"
    yield last, place / Path(state_of(last)["best_model_checkpoint"]).name


def state_of(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    return state


BEST_FIELDS = ("best_model_checkpoint", "best_metric", "best_global_step")


def test_after_a_move_the_best_checkpoint_is_the_one_beside_and_nothing_else_changes(
    moved: tuple[Path, Path], run: Path
) -> None:
    last, best = moved
    before = state_of(last)
    assert Path(before["best_model_checkpoint"]) == run / best.name, "the old place"
    localize_best(last)
    after = state_of(last)
    assert after["best_model_checkpoint"] == str(best) and best.is_dir()
    assert {key: after[key] for key in after if key != BEST_FIELDS[0]} == {
        key: before[key] for key in before if key != BEST_FIELDS[0]
    }


def test_the_trainer_ends_with_the_best_weights_of_a_run_that_was_moved(
    moved: tuple[Path, Path], rows: Rows, still: Path, tmp_path: Path
) -> None:
    last, best = moved
    localize_best(last)
    trainer = trainer_of(classifier(still), dataset_of(rows.slice(0, 8), still, None), tmp_path / "work")
    trainer.take_best_of(last)
    weights, of_last = (load_file(path / "model.safetensors") for path in (best, last))
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert any(not torch.equal(state[name], tensor) for name, tensor in of_last.items())


@pytest.mark.parametrize("damage", ["gone", "no optimizer", "weights cut off", "state cut off"])
def test_a_best_checkpoint_that_is_gone_or_torn_is_forgotten_with_its_figure(
    damage: str, moved: tuple[Path, Path]
) -> None:
    last, best = moved
    if damage == "gone":
        shutil.rmtree(best)
    elif damage == "no optimizer":
        (best / "optimizer.pt").unlink()
    else:
        file = best / ("model.safetensors" if damage == "weights cut off" else "trainer_state.json")
        file.write_bytes(file.read_bytes()[:-50])
    localize_best(last)
    state = state_of(last)
    assert [state[field] for field in BEST_FIELDS] == [None, None, None]
    assert state["global_step"] == 6 and len(state["log_history"]) > 0


def test_a_run_in_its_own_place_and_one_without_a_best_are_not_touched(moved: tuple[Path, Path]) -> None:
    last, _ = moved
    localize_best(last)
    file = last / "trainer_state.json"
    content = file.read_bytes()
    inode = file.stat().st_ino
    localize_best(last)
    assert (file.read_bytes(), file.stat().st_ino) == (content, inode)
    never = json.dumps(state_of(last) | dict.fromkeys(BEST_FIELDS))
    file.write_text(never)
    localize_best(last)
    assert file.read_text() == never
