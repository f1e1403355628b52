"""Step 8: what it predicts, for students of every kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from arena_distill.data.loading import load_test
from arena_distill.data.prompts import View, assemble, tokenize_rows
from arena_distill.evaluation.calibration import view_probabilities
from arena_distill.evaluation.calibration_file import CALIBRATION_FILE
from arena_distill.evaluation.submission import read_submission
from arena_distill.inference import predict as predict_module
from arena_distill.inference.judge import ClassifierJudge, load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.errors import InputError, SettingsError
from tests.conftest import SAMPLE
from tests.inference.predict_runs import (
    KINDS,
    MAX_LENGTH,
    TEMPERATURE,
    changed_csv,
    infer,
    logits_of,
    manifest,
    probabilities,
)

TWO = {"tta_lengths": "64,160"}  # of the first 40 sample pairs, most fit the longer and some the shorter


# What is written


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_student_predicts_what_its_own_judge_says(
    kind: str, students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    student = students / f"llama_{kind}"
    out = infer(tmp_path, model_dir=student, test_csv=small_test_csv, **TWO)
    rows = load_test(small_test_csv).rows
    expected = load_judge(student).view_logits(rows, tta_views([64, 160], swap=True))
    np.testing.assert_allclose(logits_of(out), expected, atol=1e-5)
    np.testing.assert_allclose(probabilities(out), view_probabilities(expected, TEMPERATURE), atol=1e-5)
    assert read_submission(out)[0] == rows["id"].to_pylist()
    assert np.ptp(probabilities(out), axis=0).min() > 0.05, "the student says much the same of every row"


def test_an_adapter_and_the_model_it_was_merged_into_predict_the_same(
    students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    found = []
    for kind in ("lora", "merged"):
        (tmp_path / kind).mkdir()
        found.append(infer(tmp_path / kind, model_dir=students / f"llama_{kind}", test_csv=small_test_csv))
    np.testing.assert_allclose(probabilities(found[0]), probabilities(found[1]), atol=1e-5)
    plain = infer(tmp_path, model_dir=students / "llama_plain", test_csv=small_test_csv)
    assert np.abs(probabilities(plain) - probabilities(found[0])).max() > 0.01


def test_the_submission_can_be_recomputed_from_the_logits_file(
    students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    out = infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv, **TWO)
    scaled = logits_of(out).astype(float) / TEMPERATURE
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    mean = (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(probabilities(out), mean, atol=1e-12)
    table = pq.read_table(out.with_suffix(".logits.parquet"))
    assert [str(kind) for kind in table.schema.types] == ["string", "int32", "bool", "float", "float", "float"]
    assert table["id"].to_pylist() == read_submission(out)[0] * 4
    views = list(dict.fromkeys(zip(table["max_length"].to_pylist(), table["swapped"].to_pylist(), strict=True)))
    assert views == [(64, False), (64, True), (160, False), (160, True)]


def test_the_manifest_says_with_what_and_how_fast(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    said = manifest(infer(tmp_path, model_dir=students / "llama_merged", test_csv=small_test_csv))
    assert said["stage"] == "step8_infer_tta"
    assert said["settings"] == {"tta_lengths": [MAX_LENGTH], "tta_swap": True, "predict_bf16": None}
    assert set(said["inputs"]) == {"test_csv", "model", "calibration"}
    assert set(said["outputs"]) == {"out.csv", "out.logits.parquet"}
    assert said["rows"] == 40
    assert said["temperature"] == TEMPERATURE
    assert said["views"] == ["96", "96 swapped"]
    assert said["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    speed = said["speed"]
    assert speed["tokens_per_second"] == pytest.approx(speed["tokens"] / speed["seconds"])
    assert speed["rows_per_second"] == pytest.approx(40 / speed["seconds"])


def test_exchanged_answers_give_exchanged_probabilities(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    def exchange(lines: list[dict[str, str]]) -> None:
        for line in lines:
            line["response_a"], line["response_b"] = line["response_b"], line["response_a"]

    exchanged = changed_csv(small_test_csv, tmp_path / "exchanged.csv", exchange)
    for swap in (True, False):
        found = []
        for name, file in (("as_given", small_test_csv), ("exchanged", exchanged)):
            root = tmp_path / f"{name}_{swap}"
            root.mkdir()
            run = infer(root, model_dir=students / "llama_lora", test_csv=file, tta_swap=swap, **TWO)
            found.append(probabilities(run))
        gap = np.abs(found[0] - found[1][:, [1, 0, 2]]).max()
        assert gap < 1e-5 if swap else gap > 0.01


# What is computed


class Counter:
    """Counts the sequences that a model reads."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: list[tuple[int, ...]] = []
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        masks = kwargs["attention_mask"].sum(dim=1)
        self.seen += [tuple(ids[:length].tolist()) for ids, length in zip(kwargs["input_ids"], masks, strict=True)]


def test_a_row_that_gives_equal_tokens_in_several_views_is_computed_once(
    students: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters: list[Counter] = []

    def counting(*args: object, **options: object) -> ClassifierJudge:
        judge = load_judge(*args, **options)  # type: ignore[arg-type]
        counters.append(Counter(judge.model))
        return judge

    monkeypatch.setattr(predict_module, "load_judge", counting)
    student, test = students / "llama_plain", SAMPLE / "test.csv"  # of whose rows five have equal answers
    lengths = [192, 320, 448]
    out = infer(tmp_path, model_dir=student, test_csv=test, tta_lengths="192,320,448", labels_csv="none")
    judge = load_judge(student)
    tokens = tokenize_rows(load_test(test).rows, judge.tokenizer)
    of_row: list[set[tuple[int, ...]]] = [set() for _ in range(len(tokens))]
    for length in lengths:
        for swap in (False, True):
            sequences, _ = assemble(tokens, judge.layout, [View(length, swap)])
            for row, distinct in enumerate(of_row):
                distinct.add(tuple(sequences.ids[row].tolist()))
    expected = sum(map(len, of_row))
    assert 2 * len(tokens) < expected < 4 * len(tokens), "six views, most of them alike, or the test shows nothing"
    assert len(counters[0].seen) == expected == manifest(out)["sequences"]


class SmallMemory:
    """A model whose forward pass runs out of memory above some number of tokens, as a small GPU's would."""

    def __init__(self, model: torch.nn.Module, most_tokens: int) -> None:
        self.most_tokens, self.failures = most_tokens, 0
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].numel() > self.most_tokens:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("most_tokens", [400, 50])
def test_when_memory_runs_out_batches_are_halved_until_a_single_sequence_does_not_fit(
    most_tokens: int,
    students: Path,
    small_test_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memories: list[SmallMemory] = []

    def small(*args: object, **options: object) -> ClassifierJudge:
        judge = load_judge(*args, **options)  # type: ignore[arg-type]
        memories.append(SmallMemory(judge.model, most_tokens))
        return judge

    whole = infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv)
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(predict_module, "load_judge", small)
    settings = {"model_dir": students / "bert_plain", "test_csv": small_test_csv}
    if most_tokens < MAX_LENGTH:
        with pytest.raises(SettingsError, match="out of memory at a single sequence of 96 tokens"):
            infer(tmp_path / "small", **settings)
        return
    halved = infer(tmp_path / "small", **settings)
    assert 1 <= memories[0].failures <= 5, "a budget found too large is tried again and again"
    assert "out of memory: going on with batches of" in capsys.readouterr().out
    np.testing.assert_allclose(probabilities(halved), probabilities(whole), atol=1e-5)


# Temperature


def test_without_a_calibration_the_temperature_is_one_and_that_is_said(
    students: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(students / "bert_plain", tmp_path / "student"))
    (student / CALIBRATION_FILE).unlink()
    out = infer(tmp_path, model_dir=student, test_csv=small_test_csv)
    assert "missing, so probabilities are not calibrated" in capsys.readouterr().out
    np.testing.assert_allclose(probabilities(out), view_probabilities(logits_of(out), 1.0), atol=1e-12)


def test_a_calibration_given_by_name_counts_and_foreign_weights_are_noted(
    students: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = students / "llama_plain" / CALIBRATION_FILE
    given = tmp_path / "given.json"
    given.write_text(other.read_text("utf-8").replace(str(TEMPERATURE), "3.5"), "utf-8")
    out = infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv, temperature_json=given)
    assert f"note: {given} was fitted on other weights" in capsys.readouterr().out
    np.testing.assert_allclose(probabilities(out), view_probabilities(logits_of(out), 3.5), atol=1e-12)


def test_other_views_than_the_fitted_ones_are_noted(
    students: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv, tta_lengths=64)
    assert "fitted with the views 96, 96 swapped and is used with 64, 64 swapped" in capsys.readouterr().out


def test_a_calibration_of_other_weights_is_refused(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(students / "bert_plain", tmp_path / "student"))
    shutil.copyfile(students / "llama_plain" / CALIBRATION_FILE, student / CALIBRATION_FILE)
    with pytest.raises(InputError, match="fitted on other weights"):
        infer(tmp_path, model_dir=student, test_csv=small_test_csv)


# Settings


@pytest.mark.parametrize(
    ("given", "views"),
    [
        ({}, ["96"]),
        ({"max_length": 64}, ["64"]),
        ({"tta_lengths": "48, 128,256", "max_length": 128}, ["48", "128"]),
    ],
)
def test_lengths_are_the_students_own_or_those_given_and_max_length_bounds_them(
    given: dict[str, object], views: list[str], students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    out = infer(tmp_path, model_dir=students / "bert_plain", test_csv=small_test_csv, tta_swap=False, **given)
    assert manifest(out)["views"] == views


def test_with_votes_at_hand_a_table_shows_what_calibration_does(
    students: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(tmp_path, model_dir=students / "bert_plain", test_csv=SAMPLE / "test.csv", tta_swap=False)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in lines[lines.index("Test rows of test.csv (300 rows)") :]]
    assert names[1:] == ["model", "not calibrated", "this student, calibrated", "Bayes optimal"]


def test_the_quantized_model_of_a_run_is_preferred_and_the_merged_one_takes_its_place_with_a_note(
    students: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "model_save" / "x"
    shutil.copytree(students / "bert_plain", models / "final_merged_model")
    settings = {"run": "x", "output_dir": tmp_path, "test_csv": small_test_csv, "out": ""}
    infer(tmp_path, **settings)
    assert "so " + str(models / "final_merged_model") + " predicts" in capsys.readouterr().out
    out = tmp_path / "sub" / "x_final_submission.csv"
    assert manifest(out)["model_dir"] == str(models / "final_merged_model")
    shutil.copytree(students / "llama_plain", models / "final_quantized_model")
    infer(tmp_path, **settings)
    assert manifest(out)["model_dir"] == str(models / "final_quantized_model")
