"""What step 4 writes: every row judged once a family, by the teacher of its own fold, as plain transformers would."""

from __future__ import annotations

import csv
import gc
import re
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from sklearn.metrics import log_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference import oof
from arena_distill.inference.judge import ClassifierJudge
from arena_distill.inference.oof_job import OofJob
from arena_distill.inference.oof_settings import OofSettings
from arena_distill.inference.oof_table import ENSEMBLE, read_oof_table
from tests.inference.oof_runs import (
    EXTRA,
    FAMILIES,
    LOGITS,
    N_FOLDS,
    PROBABILITIES,
    adapter,
    array,
    copy_of,
    family_columns,
    folds_of,
    infer,
    logits_dir,
    results,
    rows_of,
    table_path,
)

WIDTH, LIMIT = 32, 64  # hidden size and length limit of the tiny teachers


# The table and the files of each fold


def test_every_base_row_stands_once_a_family_with_the_fold_of_the_folds_file(scored: Path) -> None:
    rows, folds = rows_of(scored), folds_of(scored)
    table = pq.read_table(table_path(scored))
    families = [*FAMILIES, ENSEMBLE]
    assert table["family"].to_pylist() == [name for name in families for _ in range(len(rows))]
    for column in ("id", "row_hash", "base_idx"):
        assert table[column].to_pylist() == rows[column].to_pylist() * len(families), column
    assert table["fold"].to_pylist() == folds.fold.tolist() * len(families)
    assert list(read_oof_table(table_path(scored), rows, folds)) == families


def test_the_reader_returns_what_the_file_holds_by_base_row(scored: Path) -> None:
    for name, family in read_oof_table(table_path(scored), rows_of(scored), folds_of(scored)).items():
        np.testing.assert_array_equal(family.logits, family_columns(table_path(scored), name, LOGITS))
        np.testing.assert_array_equal(family.probabilities, family_columns(table_path(scored), name, PROBABILITIES))
        np.testing.assert_array_equal(family.swap_gap[:, None], family_columns(table_path(scored), name, ("swap_gap",)))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_folds_arrays_hold_its_held_out_rows_and_nothing_else(family: str, scored: Path) -> None:
    held_out = folds_of(scored).fold
    together = np.full((len(held_out), 3), np.nan, np.float32)
    for fold in range(N_FOLDS):
        logits, probabilities = array(scored, family, fold), array(scored, family, fold, "probs")
        for values in (logits, probabilities):
            assert values.dtype == np.float32 and values.shape == (len(held_out), 3)
            assert np.isfinite(values[held_out == fold]).all()
            assert np.isnan(values[held_out != fold]).all()
        own = logits[held_out == fold]
        np.testing.assert_allclose(probabilities[held_out == fold], softmax(own), atol=1e-7)
        together[held_out == fold] = own
    np.testing.assert_array_equal(together, family_columns(table_path(scored), family, LOGITS))
    np.testing.assert_allclose(softmax(together), family_columns(table_path(scored), family, PROBABILITIES), atol=1e-12)


def test_the_ensemble_is_the_mean_of_the_families_probabilities(scored: Path) -> None:
    mean = np.mean([family_columns(table_path(scored), name, PROBABILITIES) for name in FAMILIES], axis=0)
    ensemble = family_columns(table_path(scored), ENSEMBLE, PROBABILITIES)
    np.testing.assert_allclose(ensemble, mean, atol=1e-6)
    np.testing.assert_allclose(softmax(family_columns(table_path(scored), ENSEMBLE, LOGITS)), mean, atol=1e-6)
    single = [family_columns(table_path(scored), name, PROBABILITIES) for name in FAMILIES]
    assert np.abs(single[0] - single[1]).max() > 0.01, "two families that agree could not tell a mean from either"


# Against plain transformers and PEFT


@cache
def _plain_label_log_probabilities(root: Path, family: str, fold: int, adapted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Raw logits and log-probabilities of the label tokens in both orders, ``[2, N, 3]``, put back to A, B, tie.

    Of every base row, one at a time, over the whole vocabulary; with nothing of ours but the token sequences.
    """
    base = root / "bases" / family
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapted:
        model = PeftModel.from_pretrained(model, str(adapter(root, family, fold)))
    model.eval()
    labels = [tokenizer.convert_tokens_to_ids(word) for word in "ABC"]
    layout = TextFormat.load(adapter(root, family, fold))
    views = [View(LIMIT, swap) for swap in (False, True)]
    sequences, number = assemble(tokenize_rows(rows_of(root), tokenizer), layout, views)
    raw, log_p = [], []
    with torch.inference_mode():
        for sequence in range(len(sequences)):
            ids = torch.tensor(sequences.ids[sequence], dtype=torch.int64)[None]
            last = model(input_ids=ids).logits[0, -1].double()
            assert len(last) > 1000, "not the whole vocabulary"
            raw.append(last[labels].numpy())
            log_p.append(torch.log_softmax(last, dim=0)[labels].numpy())
    scores = []
    for values in (np.array(raw), np.array(log_p)):
        as_given, swapped = values[number]
        scores.append(np.stack([as_given, np.column_stack([swapped[:, 1], swapped[:, 0], swapped[:, 2]])]))
    return scores[0], scores[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_causal_lm_with_its_adapter_in_plain_transformers(family: str, scored: Path) -> None:
    held_out = folds_of(scored).fold
    logits = family_columns(table_path(scored), family, LOGITS)
    given = family_columns(table_path(scored), family, PROBABILITIES)
    gap = family_columns(table_path(scored), family, ("swap_gap",))[:, 0]
    for fold in range(N_FOLDS):
        own = held_out == fold
        raw, log_p = _plain_label_log_probabilities(scored, family, fold, adapted=True)
        np.testing.assert_allclose(logits[own], raw.mean(axis=0)[own], atol=1e-4)
        restricted = np.exp(log_p.mean(axis=0))
        expected = restricted / restricted.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(given[own], expected[own], atol=1e-5)
        by_order = np.exp(log_p) / np.exp(log_p).sum(axis=2, keepdims=True)
        np.testing.assert_allclose(gap[own], np.abs(by_order[0] - by_order[1]).sum(axis=1)[own], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_left_out_or_of_another_fold_would_show(family: str, scored: Path) -> None:
    """The bound of the test above is a thousand times smaller than what it must tell apart."""
    held_out = folds_of(scored).fold
    logits = family_columns(table_path(scored), family, LOGITS)
    for fold in range(N_FOLDS):
        own = held_out == fold
        others = [(fold, False), *((other, True) for other in range(N_FOLDS) if other != fold)]
        for other, adapted in others:
            raw, _ = _plain_label_log_probabilities(scored, family, other, adapted)
            assert np.median(np.abs(logits[own] - raw.mean(axis=0)[own]).max(axis=1)) > 0.01, (other, adapted)


def test_one_order_alone_on_request(scored: Path, tmp_path: Path) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_swap=False, infer_models="llama")
    logits = family_columns(table_path(root), "llama", LOGITS)
    for fold in range(N_FOLDS):
        own = folds_of(root).fold == fold
        raw, _ = _plain_label_log_probabilities(scored, "llama", fold, adapted=True)
        np.testing.assert_allclose(logits[own], raw[0][own], atol=1e-4)
    assert np.abs(logits - family_columns(table_path(scored), "llama", LOGITS)).max() > 0.01


# What the head reads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_output_head_makes_the_logits_of_the_last_token_states(
    family: str, scored: Path, tmp_path: Path
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_save_lasttok=True, infer_swap=False, infer_models=family)
    tokenizer = AutoTokenizer.from_pretrained(root / "bases" / family)
    head = load_file(scored / "bases" / family / "model.safetensors")["lm_head.weight"]
    head = head[[tokenizer.convert_tokens_to_ids(word) for word in "ABC"]].astype(np.float64)
    held_out = folds_of(root).fold
    for fold in range(N_FOLDS):
        states, own = array(root, family, fold, "lasttok"), held_out == fold
        assert states.dtype == np.float16 and states.shape == (len(held_out), WIDTH)
        assert np.isnan(states[~own]).all()
        rounding = np.abs(states[own].astype(np.float64)) @ np.abs(head).T * 2.0**-11  # half a unit of each float16
        gap = np.abs(states[own].astype(np.float64) @ head.T - array(root, family, fold)[own])
        assert (gap <= rounding + 1e-4).all()
        shuffled = np.abs(states[own][::-1].astype(np.float64) @ head.T - array(root, family, fold)[own])
        assert np.median(shuffled) > 10 * np.median(rounding), "states of other rows would show"


def test_saving_last_token_states_changes_no_bit_of_the_logits_and_takes_those_of_the_given_order(
    scored: Path, tmp_path: Path
) -> None:
    with_states, one_order = (copy_of(scored, tmp_path / name, logits=False) for name in ("states", "order"))
    infer(with_states, infer_save_lasttok=True)
    infer(one_order, infer_save_lasttok=True, infer_swap=False, infer_models="llama")
    files = results(with_states)
    states = {name for name in files if "lasttok" in name}
    assert len(states) == N_FOLDS * len(FAMILIES)
    assert {name: data for name, data in files.items() if name not in states} == results(scored)
    for fold in range(N_FOLDS):
        own = folds_of(scored).fold == fold
        both, one = (array(root, "llama", fold, "lasttok")[own] for root in (with_states, one_order))
        np.testing.assert_allclose(both.astype(float), one.astype(float), atol=2e-3)  # other batches, other rounding


# What it prints


def test_the_printed_log_losses_are_those_of_the_written_numbers(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    truth = np.random.default_rng(0).dirichlet([1, 1, 1], len(rows_of(root)))
    columns = {name: truth[:, k] for k, name in enumerate(PROBABILITIES)}
    pq.write_table(pa.table({"id": rows_of(root)["id"], **columns}), root / "truth.parquet")
    infer(root, infer_baselines=True, extra_data=EXTRA)
    printed = capsys.readouterr().out
    with (root / "train.csv").open(newline="", encoding="utf-8") as stream:
        votes = list(csv.DictReader(stream))
    label = np.array([[float(vote[f"winner_{name}"]) for name in ("model_a", "model_b", "tie")] for vote in votes])
    label = label.argmax(axis=1)
    assert set(label) == {0, 1, 2}

    def printed_for(name: str) -> str:
        return re.search(rf"^{name} +(\d\.\d{{4}}) ", printed, re.MULTILINE).group(1)  # type: ignore[union-attr]

    for family in (*FAMILIES, ENSEMBLE):
        p = family_columns(table_path(root), family, PROBABILITIES)
        assert printed_for(family) == f"{log_loss(label, p, labels=[0, 1, 2]):.4f}"
    assert printed_for("Bayes optimal") == f"{log_loss(label, truth, labels=[0, 1, 2]):.4f}"
    for baseline in ("constant prior", "length", "TF-IDF"):
        assert printed_for(baseline)
    for family in FAMILIES:
        for fold in range(N_FOLDS):
            own = folds_of(root).fold == fold
            p = array(root, family, fold, "probs")[own].astype(float)
            loss = log_loss(label[own], p / p.sum(axis=1, keepdims=True), labels=[0, 1, 2])
            directory = logits_dir(root) / f"{family}_fold_{fold}"
            assert f"{directory}: log loss {loss:.4f} on the {own.sum()} rows of fold {fold}" in printed


# Folds one after the other


def test_one_fold_alone_is_scored_alone_and_the_table_waits_for_the_others(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_folds="0")
    printed = capsys.readouterr().out
    assert sorted(path.name for path in logits_dir(root).glob("[!.]*")) == [f"{name}_fold_0" for name in FAMILIES]
    waits = [f"{name}_fold_{fold}" for name in FAMILIES for fold in (1, 2)]
    assert f"{table_path(root)}: waits for {', '.join(waits)}" in printed
    infer(root, infer_folds="1,2")
    assert f"{table_path(root).name}: valid" in capsys.readouterr().out
    assert results(root) == results(scored)


# Memory


class SmallMemory:
    """A model whose forward pass runs out of memory with more than some rows."""

    def __init__(self, model: torch.nn.Module, most_rows: int) -> None:
        self.most_rows, self.failures = most_rows, 0
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if len(kwargs["input_ids"]) > self.most_rows:
            self.failures += 1
            raise torch.cuda.OutOfMemoryError("out of memory")


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[SmallMemory]:
    """Teachers that step 4 loads from now on have memory for four rows."""
    load, made = oof.load_teacher, []

    def load_small(settings: OofSettings, job: OofJob) -> ClassifierJudge:
        judge = load(settings, job)
        made.append(SmallMemory(judge.model, 4))
        return judge

    monkeypatch.setattr(oof, "load_teacher", load_small)
    return made


@pytest.mark.parametrize("states", [False, True], ids=["logits", "and last-token states"])
def test_batches_too_large_for_the_memory_are_halved_and_every_row_gets_its_own_numbers(
    states: bool, scored: Path, tmp_path: Path, memories: list[SmallMemory]
) -> None:
    root, whole = (copy_of(scored, tmp_path / name, logits=False) for name in ("root", "whole"))
    infer(root, infer_models="llama", infer_save_lasttok=states)
    assert all(memory.failures for memory in memories)
    memories.clear()
    infer(whole, infer_models="llama", infer_save_lasttok=states, infer_batch_tokens=16)
    assert not any(memory.failures for memory in memories)
    for fold in range(N_FOLDS):
        for what in ("logits", "lasttok") if states else ("logits",):
            halved, single = (array(path, "llama", fold, what).astype(float) for path in (root, whole))
            np.testing.assert_allclose(halved, single, atol=1e-4 if what == "logits" else 2e-3)


def test_a_batch_size_found_too_large_is_not_tried_with_every_batch(
    scored: Path, tmp_path: Path, memories: list[SmallMemory], capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(scored, tmp_path / "root", logits=False)
    infer(root, infer_models="llama", infer_folds=0, infer_batch_tokens=512)  # eight rows a batch
    assert 1 <= memories[0].failures <= 2
    assert "batches of 0 tokens" not in capsys.readouterr().out


def test_a_teacher_has_left_the_memory_before_the_next_one_is_loaded(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two 70B models do not fit side by side."""
    load, models = oof.load_teacher, []

    def load_and_count(settings: OofSettings, job: OofJob) -> ClassifierJudge:
        assert not any(model() for model in models), "the teacher before is still there"
        judge = load(settings, job)
        models.append(weakref.ref(judge.model))
        return judge

    root = copy_of(scored, tmp_path / "root", logits=False)
    monkeypatch.setattr(oof, "load_teacher", load_and_count)
    gc.collect()
    gc.disable()  # else chance decides
    try:
        infer(root, infer_models="llama")
    finally:
        gc.enable()
    assert len(models) == N_FOLDS
