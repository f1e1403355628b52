"""Step 5: a student that others can load, that no held-out row has taught, and that tells what it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.data.records import SCHEMA, Rows, targets
from arena_distill.data.splits import HOLDOUT, cv_split
from arena_distill.evaluation.calibration_file import read_calibration
from arena_distill.evaluation.heldout import HELDOUT_FILE, read_heldout
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.inference.judge import load_judge
from arena_distill.models.classifier import pad_batch
from arena_distill.training.distill import distill_student
from arena_distill.training.distill_data import StudentRows
from arena_distill.training.trainer import last_whole_checkpoint
from tests.training.distill_runs import (
    ADAPTER,
    BASE_ROWS,
    EXTRA_ROWS,
    N_FOLDS,
    TEACHERS,
    assert_same_weights,
    checkpoints,
    copy_of,
    distill,
    folds_of,
    lesson_of,
    quick,
    rows_of,
    settings_of,
    student_dir,
    table_path,
    teacher_logits,
    write_table,
)
from tests.training.teacher_runs import manifest_of

BOTH_ORDERS = [View(48), View(48, swap=True)]
CALIBRATION_KEYS = {
    "temperature",
    *(
        f"{figure}_{part}_{when}"
        for figure in ("nll", "logloss")
        for part in ("cal", "holdout")
        for when in ("before", "after", "improvement")
    ),
}


def _bytes(output: Path, fold: int = 1, file: str = ADAPTER) -> bytes:
    return (student_dir(output, fold) / file).read_bytes()


def _scoring_rows(root: Path, fold: int = 1) -> Rows:
    """The half of a fold that only scores; as ``main.py`` divides it, so not by step 5's own code."""
    rows = rows_of(root)
    return cv_split(rows, N_FOLDS, fold, 42, root / "train.csv").select(rows, HOLDOUT)


def _plain_inputs(rows: Rows, directory: Path) -> dict[str, torch.Tensor]:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    sequences, _ = assemble(tokenize_rows(rows, tokenizer), TextFormat.load(directory), [View(48)])
    return pad_batch(sequences, np.arange(len(sequences)), tokenizer.pad_token_id)


# What a finished student is


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def student(
    request: pytest.FixtureRequest,
    distill_root: Path,
    backbones: Path,
    students: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A LoRA student of fold 1, and its base."""
    base = backbones / request.param
    if request.param == "llama":
        return student_dir(students), base
    output = tmp_path_factory.mktemp(request.param)
    distill(quick(distill_root, base, output))
    return student_dir(output), base


@pytest.fixture(scope="module")
def whole_student(distill_root: Path, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student of fold 1 of which every weight was trained, and its base."""
    output = tmp_path_factory.mktemp("whole")
    distill(quick(distill_root, backbones / "bert", output, student_lora_r=0, student_lr=1e-3))
    return student_dir(output), backbones / "bert"


def test_its_files_are_all_in_its_manifest_and_checkpoints_are_kept(student: tuple[Path, Path]) -> None:
    directory, _ = student
    manifest = manifest_of(directory)
    files = {path.name for path in directory.iterdir() if path.is_file()}
    assert files - {"manifest.json"} == set(manifest["outputs"])
    assert {ADAPTER, "adapter_config.json", "classifier_head.pt", "classifier_head.safetensors"} < files
    assert {"tokenizer.json", "tokenizer_config.json", "text_format.json", "calibration.json", HELDOUT_FILE} < files
    assert not files & {"training_args.bin", "README.md", "optimizer.pt"}
    assert {path for path in directory.iterdir() if path.is_dir()} == set(checkpoints(directory)) != set()
    assert not [path for path in directory.parent.iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


def test_a_kept_checkpoint_is_whole_and_the_best_one_holds_the_published_weights(
    student: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, _ = student
    best = directory / f"checkpoint-{manifest_of(directory)['metrics']['best_step']}"
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    last_whole_checkpoint(copy)  # removes torn ones
    assert [path.name for path in checkpoints(copy)] == [path.name for path in checkpoints(directory)]
    assert_same_weights(best / ADAPTER, directory / ADAPTER)


def test_the_head_stands_beside_the_adapter_as_it_was_trained(
    student: tuple[Path, Path], distill_root: Path, tmp_path: Path
) -> None:
    directory, base = student
    saved = load_file(directory / ADAPTER)
    head = torch.load(directory / "classifier_head.pt", weights_only=True)
    other = load_file(directory / "classifier_head.safetensors")
    assert type(head) is dict
    assert head.keys() == other.keys() == {"score.weight"}
    for name, tensor in head.items():
        assert torch.equal(tensor, other[name])
        assert torch.equal(tensor, saved[f"base_model.model.{name}"])
    assert {name for name in saved if "lora_" not in name} == {f"base_model.model.{name}" for name in head}

    distill(quick(distill_root, base, tmp_path, student_lr=1e-30))  # what is left is how it began
    untrained = torch.load(student_dir(tmp_path) / "classifier_head.pt", weights_only=True)
    assert all((head[name] - untrained[name]).abs().max() > 1e-4 for name in head), "the head was not trained"
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name), "nothing was learned"


def test_plain_peft_and_transformers_load_the_judge_that_load_judge_loads(
    student: tuple[Path, Path], distill_root: Path
) -> None:
    directory, base = student
    rows = _scoring_rows(distill_root).slice(0, 9)
    inputs, logits = _plain_inputs(rows, directory), []
    for seed in (1, 2):  # a head drawn at load time would be another one each time
        torch.manual_seed(seed)
        model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model.config.pad_token_id = AutoTokenizer.from_pretrained(directory).pad_token_id
        model = PeftModel.from_pretrained(model, str(directory)).eval()
        with torch.inference_mode():
            logits.append(model(**inputs).logits.numpy())
            with model.disable_adapter():
                bare = model(**inputs).logits.numpy()
    np.testing.assert_array_equal(*logits)
    judged = load_judge(directory, max_length=48).logits(rows)
    assert np.abs(judged - bare).max() > 1e-3, "the base alone would agree"
    np.testing.assert_allclose(judged, logits[0], rtol=0, atol=1e-5)


def test_its_held_out_metrics_are_what_the_saved_student_scores_on_the_scoring_half(
    student: tuple[Path, Path], distill_root: Path
) -> None:
    directory, _ = student
    rows, metrics = _scoring_rows(distill_root), manifest_of(directory)["metrics"]
    logits = load_judge(directory, max_length=48).view_logits(rows, BOTH_ORDERS)
    raw = score(softmax(logits).mean(axis=0), targets(rows))
    assert metrics["held_out_uncalibrated"]["log_loss"] == pytest.approx(raw.log_loss, abs=1e-6)
    saved = read_heldout(directory / HELDOUT_FILE)
    calibrated = score(saved.probabilities, targets(rows))
    assert metrics["held_out"] == pytest.approx(calibrated.as_dict(), abs=1e-9)
    assert saved.base_idx.tolist() == rows["base_idx"].to_pylist()
    assert saved.row_hash == rows["row_hash"].to_pylist()
    np.testing.assert_array_equal(saved.targets, targets(rows))


def test_its_calibration_is_of_these_weights_and_says_what_it_is_worth(student: tuple[Path, Path]) -> None:
    directory, _ = student
    found = json.loads((directory / "calibration.json").read_text("utf-8"))
    assert found.keys() >= CALIBRATION_KEYS
    assert all(np.isfinite(found[key]) for key in CALIBRATION_KEYS)
    for name in ("nll_cal", "nll_holdout", "logloss_cal", "logloss_holdout"):
        gain = found[f"{name}_before"] - found[f"{name}_after"]
        assert found[f"{name}_improvement"] == pytest.approx(gain, abs=1e-12)
    assert found["nll_cal_improvement"] >= 0, "never worse than T = 1 on the rows that it was fitted on"
    held_out = manifest_of(directory)["metrics"]["held_out"]["log_loss"]
    assert found["logloss_holdout_after"] == pytest.approx(held_out, abs=1e-12)
    saved = read_calibration(directory)
    assert saved is not None and saved.temperature == found["temperature"]
    assert saved.views == ("48", "48 swapped")


def test_its_manifest_tells_fold_teachers_rows_and_where_it_began(
    student: tuple[Path, Path], distill_root: Path
) -> None:
    manifest = manifest_of(student[0])
    assert (manifest["fold"], manifest["n_folds"], manifest["max_length"]) == (1, N_FOLDS, 48)
    assert manifest["teachers"] == dict.fromkeys(TEACHERS, 1.0)
    assert len(manifest["initial_sha256"]) == 64
    held_out = int((folds_of(distill_root).fold == 1).sum())
    rows = manifest["rows"]
    assert rows["selection"] + rows["scoring"] == held_out
    assert rows["with_teacher_labels"] == BASE_ROWS - held_out < rows["train"] <= BASE_ROWS - held_out + EXTRA_ROWS
    assert manifest["inputs"].keys() == {
        "train_csv", "folds_json", "student_model", "oof_table", "fold_train_csv", "fold_val_csv",
    }  # fmt: skip
    assert manifest["metrics"]["steps"] == 4


def test_a_full_fine_tune_loads_in_plain_transformers(whole_student: tuple[Path, Path], distill_root: Path) -> None:
    directory, base = whole_student
    rows = _scoring_rows(distill_root).slice(0, 9)
    plain, report = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        logits = plain.eval()(**_plain_inputs(rows, directory)).logits.numpy()
    np.testing.assert_allclose(load_judge(directory, max_length=48).logits(rows), logits, rtol=0, atol=1e-5)
    before, after = load_file(base / "model.safetensors"), load_file(directory / "model.safetensors")
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items() if "query.weight" in name)
    head = torch.load(directory / "classifier_head.pt", weights_only=True)
    assert {"classifier.weight", "classifier.bias"} < head.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in head.items())
    assert not (directory / ADAPTER).exists()
    assert checkpoints(directory)


def test_a_full_fine_tunes_held_out_metrics_are_what_plain_weights_score(
    whole_student: tuple[Path, Path], distill_root: Path
) -> None:
    directory, _ = whole_student
    rows = _scoring_rows(distill_root)
    logits = load_judge(directory, max_length=48).view_logits(rows, BOTH_ORDERS)
    found = manifest_of(directory)["metrics"]["held_out_uncalibrated"]["log_loss"]
    assert found == pytest.approx(score(softmax(logits).mean(axis=0), targets(rows)).log_loss, abs=1e-6)


def test_an_output_directory_of_ones_own_gets_the_folds_number_once(
    distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    for outdir in ("mine", "yours_fold_1"):
        settings = quick(distill_root, backbones / "llama", tmp_path, student_outdir=tmp_path / outdir)
        distill(settings | {"student_max_steps": 1, "student_save_steps": 1})
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"mine_fold_1", "yours_fold_1"}


# Where it begins


def test_all_folds_start_from_the_same_weights_and_another_seed_from_others(
    students: Path, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    manifests = [manifest_of(student_dir(students, fold)) for fold in (0, 1)]
    assert manifests[0]["initial_sha256"] == manifests[1]["initial_sha256"]
    assert _bytes(students, 0) != _bytes(students, 1), "one student twice"

    # What is left at a learning rate of next to nothing is how each began.
    settings = {"student_lr": 1e-30, "student_weight_decay": 0, "student_max_steps": 1, "student_save_steps": 1}
    distill(quick(distill_root, backbones / "llama", tmp_path / "a", **settings, student_folds="0,2"))
    distill(quick(distill_root, backbones / "llama", tmp_path / "b", **settings, student_seed=7))
    first, second, other = student_dir(tmp_path / "a", 0), student_dir(tmp_path / "a", 2), student_dir(tmp_path / "b")
    assert_same_weights(first / ADAPTER, second / ADAPTER, atol=1e-20)
    assert manifest_of(first)["initial_sha256"] == manifests[0]["initial_sha256"]
    assert manifest_of(other)["initial_sha256"] != manifests[0]["initial_sha256"]
    one, two = load_file(first / ADAPTER), load_file(other / ADAPTER)
    assert all(not torch.equal(one[name], two[name]) for name in one if "lora_A" in name or "score" in name)


# The leak rule


@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_training_selection_and_scoring_rows_share_no_prompt(
    fold: int, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    _, rows, _ = lesson_of(quick(distill_root, backbones / "llama", tmp_path, student_folds=fold))
    train, selection, scoring = (
        set(part["prompt_hash"].to_pylist()) for part in (rows.train, rows.selection, rows.scoring)
    )
    assert not train & selection and not train & scoring and not selection & scoring
    base = rows_of(distill_root)
    assert len(set(base["prompt_hash"].to_pylist())) < len(base), "no prompt stands twice: nothing could go wrong"
    held_out = np.flatnonzero(folds_of(distill_root).fold == fold).tolist()
    index = [part["base_idx"].to_pylist() for part in (rows.train, rows.selection, rows.scoring)]
    assert sorted(index[1] + index[2]) == held_out
    assert sorted(number for number in index[0] if number >= 0) == sorted(set(range(BASE_ROWS)) - set(held_out))
    assert 0 < index[0].count(-1) <= EXTRA_ROWS
    assert abs(len(index[1]) - len(index[2])) <= 3
    assert index[2] == _scoring_rows(distill_root, fold)["base_idx"].to_pylist(), "main.py's students score other rows"


def _other_votes(rows: Rows) -> Rows:
    """Another vote in every row, and every text as it was."""
    votes = np.roll(targets(rows), 1, axis=1)
    columns = {
        "label": pa.array(votes.argmax(axis=1).astype(np.int8)),
        "target": pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), 3),
    }
    for name, values in columns.items():
        rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)
    return rows


CHANGES: dict[str, Callable[[StudentRows], StudentRows]] = {
    "as they are": lambda rows: rows,
    "scoring": lambda rows: StudentRows(rows.train, rows.selection, _other_votes(rows.scoring)),
    "selection": lambda rows: StudentRows(rows.train, _other_votes(rows.selection), rows.scoring),
    "train": lambda rows: StudentRows(_other_votes(rows.train), rows.selection, rows.scoring),
}


@pytest.mark.parametrize("lora_r", [4, 0])
def test_votes_of_the_scoring_half_change_no_weight_and_votes_of_training_rows_do(
    lora_r: int, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    """And votes of the selection half choose among the same checkpoints."""
    file = ADAPTER if lora_r else "model.safetensors"
    weights, manifests = {}, {}
    for name, change in CHANGES.items():
        settings = quick(
            distill_root,
            backbones / "bert",
            tmp_path / name,
            student_lora_r=lora_r,
            student_swap_augment=True,
            student_lr=1e-2 if lora_r else 1e-3,
        )
        job, rows, teachers = lesson_of(settings)
        distill_student(settings_of(settings), job, change(rows), teachers)
        weights[name], manifests[name] = _bytes(tmp_path / name, file=file), manifest_of(job.final)
    assert weights["scoring"] == weights["as they are"]
    assert weights["train"] != weights["as they are"]
    metrics = {name: manifest["metrics"] for name, manifest in manifests.items()}
    assert metrics["scoring"]["held_out"] != metrics["as they are"]["held_out"], "they are what it is scored on"
    assert metrics["scoring"]["selection_log_loss"] == metrics["as they are"]["selection_log_loss"]
    assert metrics["selection"]["selection_log_loss"] != metrics["as they are"]["selection_log_loss"]
    if metrics["selection"]["best_step"] == metrics["as they are"]["best_step"]:
        assert weights["selection"] == weights["as they are"], "selection rows taught it"


def test_what_teachers_say_of_the_held_out_fold_teaches_nothing_and_what_they_say_of_other_rows_does(
    distill_root: Path, backbones: Path, students: Path, tmp_path: Path
) -> None:
    fold = folds_of(distill_root).fold
    for name, changed in (("held_out", fold == 1), ("one_row", np.flatnonzero(fold == 2)[:1]), ("train", fold == 2)):
        root = copy_of(distill_root, tmp_path / name)
        said = teacher_logits(rows_of(root))
        for logits in said.values():
            logits[changed] = 3 * logits[changed][:, ::-1]
        write_table(root, said)
        longer: dict[str, Any] = (
            {} if name != "one_row" else {"student_max_steps": 17}
        )  # an epoch, so that the row is met
        distill(quick(root, backbones / "llama", **longer))
    whole = quick(distill_root, backbones / "llama", tmp_path / "whole", student_max_steps=17)
    distill(whole)
    assert _bytes(tmp_path / "held_out") == _bytes(students)
    assert (student_dir(tmp_path / "held_out") / HELDOUT_FILE).read_bytes() == _bytes(students, file=HELDOUT_FILE)
    assert _bytes(tmp_path / "train") != _bytes(students)
    assert _losses(tmp_path / "one_row") != _losses(tmp_path / "whole")


def _losses(output: Path) -> list[float]:
    log = json.loads((student_dir(output) / "training_log.json").read_text("utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry]


# Whom it listens to


def test_without_a_share_of_teachers_the_table_is_neither_needed_nor_read(
    distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    for name in ("table", "none", "garbage"):
        root = copy_of(distill_root, tmp_path / name)
        if name == "none":
            shutil.rmtree(table_path(root).parent)
        if name == "garbage":
            table_path(root).write_bytes(b"no table")
        distill(quick(root, backbones / "llama", student_alpha=0))
    assert _bytes(tmp_path / "table") == _bytes(tmp_path / "none") == _bytes(tmp_path / "garbage")
    manifest = manifest_of(student_dir(tmp_path / "table"))
    assert manifest["teachers"] is None
    assert manifest["rows"]["with_teacher_labels"] == 0
    assert "oof_table" not in manifest["inputs"]


@pytest.mark.parametrize("weight", ["student_mse_weight", "student_cosine_weight"])
def test_without_alpha_teachers_still_teach_by_the_other_terms(
    weight: str, distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    distill(quick(distill_root, backbones / "llama", tmp_path / "votes", student_alpha=0))
    distill(quick(distill_root, backbones / "llama", tmp_path / "both", student_alpha=0, **{weight: 1.0}))
    assert manifest_of(student_dir(tmp_path / "both"))["teachers"] == dict.fromkeys(TEACHERS, 1.0)
    assert _bytes(tmp_path / "both") != _bytes(tmp_path / "votes")


def test_a_single_teacher_is_what_a_table_with_it_alone_would_be(
    distill_root: Path, backbones: Path, students: Path, tmp_path: Path
) -> None:
    alone = copy_of(distill_root, tmp_path / "alone")
    write_table(alone, {"qwen2": teacher_logits(rows_of(alone))["qwen2"]})
    distill(quick(alone, backbones / "llama"))
    distill(quick(distill_root, backbones / "llama", tmp_path / "named", student_teachers="qwen2"))
    assert _bytes(tmp_path / "named") == _bytes(alone)
    assert _bytes(tmp_path / "named") != _bytes(students)
    assert manifest_of(student_dir(tmp_path / "named"))["teachers"] == {"qwen2": 1.0}


def test_weights_of_teachers_are_shares_whatever_their_sum(
    distill_root: Path, backbones: Path, students: Path, tmp_path: Path
) -> None:
    for name, text in (
        ("twice", "qwen2:2, llama:2"),
        ("uneven", "llama:3,qwen2:1"),
        ("nearly_one", "llama:1,qwen2:1e-9"),
    ):
        distill(quick(distill_root, backbones / "llama", tmp_path / name, student_teachers=text))
    distill(quick(distill_root, backbones / "llama", tmp_path / "one", student_teachers="llama"))
    assert _bytes(tmp_path / "twice") == _bytes(students)
    assert _bytes(tmp_path / "uneven") not in (_bytes(students), _bytes(tmp_path / "one"))
    nearly, one = (student_dir(tmp_path / name) / ADAPTER for name in ("nearly_one", "one"))
    assert_same_weights(nearly, one, atol=1e-5)
    assert manifest_of(student_dir(tmp_path / "uneven"))["teachers"] == {"llama": 3.0, "qwen2": 1.0}


def test_a_student_of_teachers_foretells_what_they_say_better_than_one_of_votes_alone(
    distill_root: Path, backbones: Path, tmp_path: Path
) -> None:
    """Teachers that always say A, against the votes: whom it listened to shows in what it says."""
    root = copy_of(distill_root, tmp_path / "root")
    write_table(root, {"llama": np.tile(np.array([4, 0, 0], np.float32), (BASE_ROWS, 1))})
    for name, alpha in (("teachers", 1.0), ("votes", 0.0)):
        last = {"student_max_steps": 10, "student_save_steps": 10}  # not the checkpoint that knows the votes best
        distill(quick(root, backbones / "llama", tmp_path / name, student_alpha=alpha, **last))
    rows = _scoring_rows(root)
    said = {
        name: softmax(load_judge(student_dir(tmp_path / name), max_length=48).logits(rows))[:, 0].mean()
        for name in ("teachers", "votes")
    }
    assert said["teachers"] > said["votes"] + 0.1
