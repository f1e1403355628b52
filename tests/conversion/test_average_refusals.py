"""What step 6 refuses: by file, with a remedy, before anything is written; no fold is ever passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arena_distill.evaluation.calibration_file import write_calibration
from arena_distill.inference.tta import tta_views
from arena_distill.runtime.artifacts import partial_directory, sha256_file
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from tests.conversion.average_runs import (
    CONFIG,
    LENGTH,
    N_FOLDS,
    WEIGHTS,
    average,
    avg_lora,
    edit_config,
    edit_manifest,
    edit_weights,
    merged_model,
    quick,
    settings_of,
    sign,
    student_dir,
)


def refused(settings: dict[str, Any], message: str, error: type[ArenaError] = InputError) -> str:
    with pytest.raises(error, match=message) as raised:
        average(settings)
    text = str(raised.value)
    assert "\n" not in text and " -> " in text
    root = Path(settings["output_dir"])
    left = {path.name for path in (root / "model_save").iterdir() if not path.name.endswith(".lock")}
    assert not left - {student_dir(root, fold).name for fold in range(N_FOLDS)}, left
    return text


def full_fine_tune(student: Path) -> None:
    (student / CONFIG).unlink()
    (student / WEIGHTS).rename(student / "model.safetensors")
    (student / "config.json").write_text("{}")
    manifest = json.loads((student / "manifest.json").read_text())
    manifest["outputs"] = {"config.json": "", "model.safetensors": ""}
    (student / "manifest.json").write_text(json.dumps(manifest))


def nan(student: Path) -> None:
    edit_weights(student, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    write_calibration(student, {"temperature": 1.0}, tta_views([LENGTH], swap=True))
    sign(student)


def fewer_columns(student: Path) -> None:
    edit_weights(student, lambda ts: ts.update({n: t[:, :16].clone() for n, t in ts.items() if "o_proj.lora_A" in n}))
    sign(student)


def other_text_format(student: Path) -> None:
    file = student / "text_format.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "otherwise"}))
    sign(student)


def no_calibration(student: Path) -> None:
    (student / "calibration.json").unlink()
    sign(student)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, r"fold_1: no such student -> FOLD=1 bash step5_distill_student\.sh"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), r"fold_1: has no manifest\.json.*FOLD=1 bash"),
    "of another stage": (lambda s: edit_manifest(s, stage="step3_train_teachers"), "made by step3_train_teachers"),
    "full fine-tune": (full_fine_tune, r"all of its weights were trained.*step 6 averages LoRA.*step9_eval\.sh"),
    "weights lost": (lambda s: (s / WEIGHTS).unlink(), r"adapter_model\.safetensors is missing -> copy it again"),
    "configuration lost": (lambda s: (s / CONFIG).unlink(), r"adapter_config\.json is missing"),
    "head lost": (lambda s: (s / "classifier_head.pt").unlink(), "files are missing or not as step 5 wrote them"),
    "of another fold": (lambda s: edit_manifest(s, fold=2), "this is the student of fold 2, not of 1"),
    "of other folds": (lambda s: edit_manifest(s, n_folds=5), "trained on 5 folds, N_FOLDS is 3"),
    "says too little": (lambda s: edit_manifest(s, max_length=None), "does not say its max_length"),
    "other data": (lambda s: edit_manifest(s, inputs={"train_csv": "x"}), "another training votes .inputs.train_csv."),
    "other folds file": (lambda s: edit_manifest(s, inputs={"folds_json": "x"}), r"another folds .inputs\.folds_json"),
    "other base": (lambda s: edit_manifest(s, inputs={"student_model": "x"}), "another base model"),
    "other length": (lambda s: edit_manifest(s, max_length=64), "trained at 64 tokens, .* at 48"),
    "other text format": (other_text_format, r"text_format\.json: assembles texts otherwise"),
    "other alpha": (lambda s: edit_config(s, lora_alpha=16), "lora_alpha 16, another than in .*fold_0"),
    "other rank": (lambda s: edit_config(s, r=8), "have rank 4 and 4, adapter_config.json says 8"),
    "other modules": (lambda s: edit_config(s, target_modules=["q_proj"]), "target_modules .'q_proj'., another"),
    "other shapes": (fewer_columns, r"o_proj\.lora_A\.weight: has \[4, 16\], another"),
    "NaN": (nan, r"adapter_model\.safetensors: base_model\S+ holds NaN or infinity"),
    "damaged": (
        lambda s: edit_weights(s, lambda tensors: next(iter(tensors.values())).mul_(2)),
        r"adapter_model\.safetensors: changed or damaged since step 5 wrote it",
    ),
    "not calibrated": (no_calibration, r"has no calibration\.json; step 5 calibrates at 48, 48 swapped"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_student_that_cannot_be_averaged_is_refused_by_file_and_nothing_is_written(
    case: str, root: Path, small_test_csv: Path
) -> None:
    damage, message = BROKEN[case]
    damage(student_dir(root, 1))
    assert str(student_dir(root, 1)) in refused(quick(root, small_test_csv), message)


def test_all_missing_folds_are_named_at_once(root: Path, small_test_csv: Path) -> None:
    for fold in (0, 2):
        shutil.rmtree(student_dir(root, fold))
    begun = partial_directory(student_dir(root, 2), "abc")
    begun.mkdir()
    with pytest.raises(InputError) as raised:
        average(quick(root, small_test_csv))
    assert "fold_0: no such student -> FOLD=0" in str(raised.value)
    assert "fold_2: begun, and not finished -> FOLD=2 bash step5_distill_student.sh goes on" in str(raised.value)


def test_a_base_that_the_students_were_not_trained_on_is_refused(
    root: Path, backbones: Path, small_test_csv: Path
) -> None:
    settings = quick(root, small_test_csv)
    message = r"BASE_MODEL=.*qwen2: the students .* were trained on another base, .*llama"
    refused(settings | {"base_model": backbones / "qwen2"}, message)
    refused(settings | {"base_model": root / "nowhere"}, "no such model directory")


def test_a_base_whose_weights_have_changed_since_is_refused(
    root: Path, backbones: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(backbones / "llama", tmp_path / "base"))
    edit_weights(base, lambda tensors: tensors["model.norm.weight"].mul_(2), "model.safetensors")
    for fold in range(N_FOLDS):
        edit_config(student_dir(root, fold), base_model_name_or_path=str(base))
    refused(quick(root, small_test_csv), "were trained on another base")


def test_rows_that_the_students_were_trained_on_are_no_test(
    root: Path, small_train_csv: Path, small_test_csv: Path
) -> None:
    refused(quick(root, small_train_csv), r"TEST_CSV=.*: is the train_csv of .*fold_0, rows that students were trained")
    edit_manifest(student_dir(root, 2), inputs={"fold_val_csv": sha256_file(small_test_csv)})
    refused(quick(root, small_test_csv), r"is the fold_val_csv of .*fold_2")


def test_labels_without_a_test_file_are_refused(
    root: Path, tmp_path: Path, small_test_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {name: value for name, value in quick(root, small_test_csv).items() if name != "test_csv"}
    refused(settings, "LABELS_CSV: given without a test file -> give TEST_CSV too")


def test_nothing_is_written_over_or_into_an_input_or_what_is_not_ours(
    root: Path, backbones: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    settings = quick(root, small_test_csv)
    student = student_dir(root, 1)
    for place in (student, student / "avg", student.parent, backbones / "llama", backbones / "llama" / "avg"):
        for name in ("out_lora", "out_merged"):
            refused(settings | {name: place}, f"{name.upper()}=.*which it is made from -> choose another place")
    refused(settings | {"out_lora": tmp_path / "x", "out_merged": tmp_path / "x"}, "OUT_MERGED=.*made from")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    for name in ("out_lora", "out_merged"):
        refused(settings | {name: tmp_path / "thesis"}, "did not make -> choose another place")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    assert not avg_lora(root).exists() and not merged_model(root).exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": "0,1,1"}, "FOLDS.*a fold stands there twice"),
        ({"folds": "1,01"}, "FOLDS.*a fold stands there twice"),
        ({"folds": "0,3"}, "with N_FOLDS=3 the folds are 0 … 2, not 3"),
        ({"folds": "some"}, "give all, or fold numbers"),
        ({"average_method": "mean", "average_rank": 4}, "AVERAGE_RANK belongs to AVERAGE_METHOD=exact"),
        ({"merged_dtype": "float8"}, "MERGED_DTYPE"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], message: str, root: Path, small_test_csv: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(quick(root, small_test_csv, **wrong))


def test_a_misspelt_variable_is_named(root: Path, small_test_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVERAGE_METHODS", "mean")
    with pytest.raises(SettingsError, match=r"unknown variable AVERAGE_METHODS.*did you mean AVERAGE_METHOD"):
        settings_of(quick(root, small_test_csv))
