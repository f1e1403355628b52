"""Step 3: a teacher never sees its held-out rows, ends as a model others can load, and survives a kill."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from arena_distill.data.fold_rows import fold_rows
from arena_distill.data.folds import load_folds
from arena_distill.data.loading import load_labelled
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import Rows, targets
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.inference.judge import load_judge
from arena_distill.models.classifier import HEAD_MODULES, load_classifier, load_tokenizer, pad_batch
from arena_distill.models.label_tokens import LabelTokens
from arena_distill.models.tiny import TinySize, make_tiny_model
from tests.conftest import is_json
from tests.training.teacher_runs import (
    EXTRA,
    FOLDS,
    NAME,
    adapter_of,
    contents,
    manifest_of,
    merged_of,
    quick_step3,
    run_script,
    start,
    step2,
    step3,
)

ADAPTER = "adapter_model.safetensors"
BOTH_ORDERS = [View(64), View(64, swap=True)]


@pytest.fixture(scope="session")
def folds(tmp_path_factory: pytest.TempPathFactory, small_train_csv: Path) -> Path:
    """The folds file that step 2 makes of the small training file."""
    output = tmp_path_factory.mktemp("folds")
    step2(train_csv=small_train_csv, n_folds=FOLDS, output_dir=output, extra_data=EXTRA)
    return output / "data" / "processed_data" / f"folds_{FOLDS}_seed42.json"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, backbones: Path, small_train_csv: Path, folds: Path) -> Path:
    """Output directory with the Llama teacher of fold 1, adapter and merged copy."""
    output = tmp_path_factory.mktemp("teacher")
    step3(**quick_step3(small_train_csv, backbones / "llama", output) | {"folds_json": folds, "teacher_merge": "1"})
    return output


def _held_out(train_csv: Path, folds: Path, fold: int = 1) -> Rows:
    return fold_rows(load_labelled(train_csv).rows, [], load_folds(folds), fold).val


def _assert_same(one: Path, two: Path, atol: float = 0.0) -> None:
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def _differ(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return any(not torch.equal(tensor, second[name]) for name, tensor in first.items())


# The leak rule


def _with_random_votes(train_csv: Path, into: Path, rows: np.ndarray) -> Path:
    """``train_csv`` with another vote in each of ``rows`` and every text as it was."""
    with train_csv.open(newline="", encoding="utf-8") as stream:
        header, *lines = list(csv.reader(stream))
    votes = [header.index(name) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    generator = np.random.default_rng(9)
    for row in rows:
        old = [lines[row][place] for place in votes].index("1")
        new = (old + generator.integers(1, 3)) % 3
        for number, place in enumerate(votes):
            lines[row][place] = str(int(number == new))
    with into.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *lines])
    return into


@pytest.mark.parametrize("head", ["label", "seq_cls"])
def test_votes_of_held_out_rows_change_neither_weights_nor_predictions_and_votes_of_train_rows_do(
    head: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    number = load_folds(folds).fold
    base = load_labelled(small_train_csv).rows
    assert len(base) == 160, "base_idx is the line number"
    files = {"as_voted": small_train_csv}
    for name, rows in (("held_out", np.flatnonzero(number == 1)), ("train", np.flatnonzero(number == 2))):
        files[name] = _with_random_votes(small_train_csv, tmp_path / f"{name}.csv", rows)
        changed = load_labelled(files[name]).rows
        load_folds(folds).check(changed, files[name])
        assert (changed["label"].to_numpy() != base["label"].to_numpy()).nonzero()[0].tolist() == rows.tolist()
    predicted = {}
    for name, file in files.items():
        settings = quick_step3(file, backbones / "llama", tmp_path / name) | {"folds_json": folds}
        step3(**settings, extra_data=EXTRA, teacher_head=head, teacher_swap_augment=True)
        judge = load_judge(adapter_of(tmp_path / name), max_length=64)
        predicted[name] = judge.view_logits(_held_out(file, folds), BOTH_ORDERS)
    weights = {name: adapter_of(tmp_path / name) / ADAPTER for name in files}
    assert weights["as_voted"].read_bytes() == weights["held_out"].read_bytes()
    np.testing.assert_array_equal(predicted["as_voted"], predicted["held_out"])
    assert _differ(weights["as_voted"], weights["train"])
    scores = [manifest_of(adapter_of(tmp_path / name))["metrics"]["held_out"] for name in ("as_voted", "held_out")]
    assert scores[0] != scores[1], "the held-out votes are what the teacher is scored on"


def test_train_rows_of_every_fold_share_no_prompt_with_its_held_out_rows(small_train_csv: Path, folds: Path) -> None:
    from arena_distill.training.teacher import TeacherData
    from arena_distill.training.teacher_settings import TeacherSettings

    settings = TeacherSettings(
        train_csv=str(small_train_csv), extra_data=str(EXTRA), n_folds=FOLDS, folds_json=str(folds)
    )
    data = TeacherData.load(settings, small_train_csv)
    left_out, extra_used = 0, 0
    for fold in range(FOLDS):
        rows = data.of_fold(settings, fold)
        train, val = (set(part["prompt_hash"].to_pylist()) for part in (rows.train, rows.val))
        assert not train & val
        assert -1 not in rows.val["base_idx"].to_pylist()
        left_out += rows.held_out_extra
        extra_used += rows.train["base_idx"].to_pylist().count(-1)
    assert left_out > 0, "no extra row had to be left out: the test would prove nothing"
    assert extra_used == FOLDS * 300 - left_out


# What a finished teacher is


@pytest.mark.parametrize("head", ["label", "seq_cls"])
def test_the_manifest_has_the_held_out_log_loss_that_the_saved_adapter_scores(
    head: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    settings = quick_step3(small_train_csv, backbones / "qwen2", tmp_path) | {"folds_json": folds}
    step3(**settings, teacher_head=head)
    rows = _held_out(small_train_csv, folds)
    logits = load_judge(adapter_of(tmp_path), max_length=64).view_logits(rows, BOTH_ORDERS).mean(axis=0)
    found = manifest_of(adapter_of(tmp_path))
    expected = score(softmax(logits), targets(rows)).as_dict()
    assert found["metrics"]["held_out"]["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)
    assert (found["rows"]["held_out"], found["rows"]["train"]) == (len(rows), 160 - len(rows))


def _plain_inputs(rows: Rows, directory: Path) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(str(directory))
    sequences, _ = assemble(tokenize_rows(rows, tokenizer), TextFormat.load(directory), [View(64)])
    return pad_batch(sequences, np.arange(len(sequences)), tokenizer.pad_token_id)


def test_base_and_adapter_in_plain_peft_are_the_causal_lm_that_judges(
    teacher: Path, backbones: Path, small_train_csv: Path, folds: Path
) -> None:
    from transformers import AutoModelForCausalLM

    directory = adapter_of(teacher)
    rows = _held_out(small_train_csv, folds).slice(0, 9)
    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbones / "llama"), str(directory))
    inputs = _plain_inputs(rows, directory)
    with torch.inference_mode():
        logits = plain.eval()(**inputs).logits
    last = logits[torch.arange(len(rows)), inputs["attention_mask"].sum(dim=1) - 1]
    three = last[:, list(LabelTokens.load(directory).ids)].numpy()
    np.testing.assert_allclose(load_judge(directory, max_length=64).logits(rows), three, rtol=0, atol=1e-5)
    untrained = load_file(directory / ADAPTER)
    assert any(tensor.abs().max() > 0 for name, tensor in untrained.items() if "lora_B" in name), "nothing was learned"


def test_the_merged_copy_judges_as_the_adapter_does(teacher: Path, small_train_csv: Path, folds: Path) -> None:
    rows = _held_out(small_train_csv, folds)
    one, two = (load_judge(path, max_length=64).logits(rows) for path in (adapter_of(teacher), merged_of(teacher)))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    assert manifest_of(merged_of(teacher))["verified"]["fold"] == 1


def test_files_of_a_finished_teacher_are_all_in_its_manifest_and_nothing_else_is_left(teacher: Path) -> None:
    directory = adapter_of(teacher)
    files = {path.name for path in directory.iterdir()}
    assert files - {"manifest.json"} == set(manifest_of(directory)["outputs"])
    assert {ADAPTER, "adapter_config.json", "tokenizer.json", "text_format.json", "label_tokens.json"} < files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))], "a pickle"
    hidden = {path.name for path in (teacher / "model_save").iterdir() if path.name.startswith(".")}
    assert all(name.endswith(".lock") for name in hidden), hidden


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "llama"])
def test_a_new_head_is_saved_as_it_was_trained(
    family: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    base = _without_head(backbones / family, tmp_path / "base")
    settings = quick_step3(small_train_csv, base, tmp_path) | {"folds_json": folds}
    step3(**settings, teacher_head="seq_cls")
    directory, rows = adapter_of(tmp_path), _held_out(small_train_csv, folds)
    logits = []
    for seed in (1, 2):  # a head drawn at load time would be another one each time
        torch.manual_seed(seed)
        logits.append(load_judge(directory, max_length=64).view_logits(rows, BOTH_ORDERS))
    np.testing.assert_array_equal(*logits)
    found = score(softmax(logits[0].mean(axis=0)), targets(rows)).log_loss
    assert manifest_of(directory)["metrics"]["held_out"]["log_loss"] == pytest.approx(found, abs=1e-6)
    saved = load_file(directory / ADAPTER)
    heads = {name: tensor for name, tensor in saved.items() if set(name.split(".")) & set(HEAD_MODULES)}
    fresh = load_classifier(str(base), load_tokenizer(str(base)))[1]
    assert {name.removeprefix("base_model.model.") for name in heads} >= fresh


def _without_head(base: Path, directory: Path) -> Path:
    """``base`` as it is published: without any classification head, or pooler."""
    shutil.copytree(base, directory)
    weights = load_file(directory / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not set(name.split(".")) & set(HEAD_MODULES)}
    save_file(body, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_full_fine_tune_loads_in_plain_transformers(
    family: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    settings = quick_step3(small_train_csv, backbones / family, tmp_path) | {"folds_json": folds}
    step3(**settings | {"teacher_lora_r": 0, "teacher_head": "seq_cls", "teacher_lr": 1e-3})
    directory, rows = merged_of(tmp_path), _held_out(small_train_csv, folds).slice(0, 9)
    plain, report = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        logits = plain.eval()(**_plain_inputs(rows, directory)).logits.numpy()
    np.testing.assert_allclose(load_judge(directory, max_length=64).logits(rows), logits, rtol=0, atol=1e-5)
    before, after = load_file(backbones / family / "model.safetensors"), load_file(directory / "model.safetensors")
    assert all(
        not torch.equal(tensor, before[name]) for name, tensor in after.items() if "q_" in name or "query" in name
    )
    assert not adapter_of(tmp_path).exists()


# How it is trained


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_no_weight(
    family: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    for name, checkpointing in (("with", True), ("without", False)):
        settings = quick_step3(small_train_csv, backbones / family, tmp_path / name)
        settings |= {"folds_json": folds, "teacher_max_steps": 2}
        step3(**settings, teacher_gradient_checkpointing=checkpointing)
    _assert_same(*(adapter_of(tmp_path / name) / ADAPTER for name in ("with", "without")), atol=1e-6)


@pytest.mark.parametrize("head", ["label", "seq_cls"])
def test_bf16_trains_factors_in_full_precision_and_scores_what_it_saved(
    head: str, backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path) | {"folds_json": folds}
    step3(**settings | {"teacher_bf16": True, "teacher_merge": "1"}, teacher_head=head)
    weights, rows = load_file(adapter_of(tmp_path) / ADAPTER), _held_out(small_train_csv, folds)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    judge = load_judge(adapter_of(tmp_path), max_length=64, dtype="bfloat16")
    found = score(softmax(judge.view_logits(rows, BOTH_ORDERS).mean(axis=0)), targets(rows)).log_loss
    assert manifest_of(adapter_of(tmp_path))["metrics"]["held_out"]["log_loss"] == pytest.approx(found, abs=2e-3)


def test_four_bit_training_on_a_cpu_ends_finite_and_is_scored(
    sample_texts: list[str], small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes quantizes in blocks of 64 weights of one row.
    make_tiny_model("llama", sample_texts, tmp_path / "base", TinySize(64, 1, 2, 1500, 512), seed=1)
    settings = quick_step3(small_train_csv, tmp_path / "base", tmp_path) | {"folds_json": folds}
    step3(**settings | {"teacher_quant": "nf4"})
    weights = load_file(adapter_of(tmp_path) / ADAPTER)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    found = manifest_of(adapter_of(tmp_path))["metrics"]["held_out"]["log_loss"]
    rows = _held_out(small_train_csv, folds)
    judge = load_judge(adapter_of(tmp_path), max_length=64, quant="nf4")
    scored = score(softmax(judge.view_logits(rows, BOTH_ORDERS).mean(axis=0)), targets(rows)).log_loss
    assert found == pytest.approx(scored, abs=1e-3)


def test_every_fold_starts_from_the_same_adapter(
    backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    """With a learning rate of next to nothing, what is left is how each began."""
    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path) | {"folds_json": folds}
    step3(**settings | {"teacher_folds": "0,2", "teacher_lr": 1e-30, "teacher_weight_decay": 0})
    _assert_same(*(adapter_of(tmp_path, fold) / ADAPTER for fold in (0, 2)), atol=1e-20)


def test_training_logs_of_each_fold_go_to_a_directory_of_its_own(
    backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "x")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")  # what the run sets goes with the test
    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path) | {"folds_json": folds}
    step3(**settings | {"teacher_folds": "0,1", "report_to": "tensorboard"})
    for fold in (0, 1):
        logs = tmp_path / "logs" / "tensorboard" / adapter_of(tmp_path, fold).name
        assert list(logs.glob("*tfevents*")), f"none of fold {fold}"


# Up to date, and interrupted


def test_a_finished_teacher_is_not_trained_again_because_another_number_of_processes_looks_at_it(
    teacher: Path,
    backbones: Path,
    small_train_csv: Path,
    folds: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trained by eight GPUs and to be merged by one: that must not cost the teacher."""
    from arena_distill.training.teacher_job import plan_teachers
    from arena_distill.training.teacher_settings import TeacherSettings

    names = quick_step3(small_train_csv, backbones / "llama", teacher) | {"folds_json": folds}
    settings = TeacherSettings(
        **{name: str(value) if isinstance(value, Path) else value for name, value in names.items()}
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [job.is_up_to_date() for job in plan_teachers(settings)] == [True]


def test_a_second_run_trains_nothing_and_another_setting_trains_again(
    backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path) | {"folds_json": folds}
    step3(**settings)
    before = contents(tmp_path)
    capsys.readouterr()
    step3(**settings | {"teacher_eval_tokens": 512})
    out = capsys.readouterr().out
    assert f"{adapter_of(tmp_path)}: up to date" in out and "trained" not in out
    assert contents(tmp_path) == before
    step3(**settings | {"teacher_lr": 2e-2})
    assert contents(tmp_path) != before


def _wait_for_checkpoint(process: subprocess.Popen[str], pattern: str, directory: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(map(is_json, directory.glob(f"{pattern}/checkpoint-*/trainer_state.json"))):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.005)


@pytest.mark.slow
def test_after_sigkill_the_same_command_goes_on_and_ends_with_the_same_weights(
    backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path
) -> None:
    def settings(output: Path) -> dict[str, object]:
        quick = quick_step3(small_train_csv, backbones / "llama", output)
        long = {"teacher_max_steps": 40, "teacher_save_steps": 1, "teacher_lora_dropout": 0.3}
        return quick | long | {"folds_json": folds, "teacher_swap_augment": True}

    step3(**settings(tmp_path / "whole"))
    process = start("train_teachers.py", **settings(tmp_path / "killed"))
    _wait_for_checkpoint(process, f".{NAME}_fold_1_lora.partial-*/training", tmp_path / "killed" / "model_save")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not adapter_of(tmp_path / "killed").exists(), "the run ended before it was killed"
    code, output = run_script("train_teachers.py", **settings(tmp_path / "killed"))
    assert code == 0, output
    assert "going on from checkpoint-" in output
    _assert_same(*(adapter_of(tmp_path / name) / ADAPTER for name in ("whole", "killed")))


def test_a_run_killed_after_its_last_checkpoint_publishes_the_weights_of_that_checkpoint(
    backbones: Path, small_train_csv: Path, folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arena_distill.training import teacher

    settings = quick_step3(small_train_csv, backbones / "llama", tmp_path / "killed") | {"folds_json": folds}
    settings |= {"teacher_save_steps": 1, "teacher_lora_dropout": 0.3}

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(teacher, "write_manifest", die)
        step3(**settings)
    step3(**settings)
    step3(**settings | {"output_dir": tmp_path / "whole"})
    _assert_same(*(adapter_of(tmp_path / name) / ADAPTER for name in ("whole", "killed")))
