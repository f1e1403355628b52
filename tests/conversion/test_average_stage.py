"""Step 6: what it leaves is the average of all folds, loads anywhere, is proved before it appears, and is made once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from arena_distill.data.loading import load_labels, load_test
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.evaluation.calibration_file import read_calibration
from arena_distill.evaluation.metrics import score, softmax
from arena_distill.inference.judge import load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.models.classifier import load_tokenizer, pad_batch
from arena_distill.models.head_file import head_sha256, read_head
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import ArenaError
from tests.conftest import REPOSITORY, SAMPLE
from tests.conversion.average_runs import (
    LENGTH,
    N_FOLDS,
    TEMPERATURES,
    WEIGHTS,
    average,
    avg_lora,
    contents,
    copy_of,
    edit_manifest,
    edit_weights,
    make_students,
    manifest_of,
    merged_model,
    quick,
    student_dir,
)
from tests.models.merge_cases import load_base, load_whole, merged_by_peft, resaved
from tests.training.teacher_runs import flags


def inputs_of(directory: Path, test_csv: Path) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(str(directory))
    rows = load_test(test_csv).rows.slice(0, 9)
    sequences, _ = assemble(tokenize_rows(rows, tokenizer), TextFormat.load(directory), [View(LENGTH)])
    return pad_batch(sequences, np.arange(len(sequences)), tokenizer.pad_token_id)


def plain_logits(model: Any, directory: Path, test_csv: Path) -> np.ndarray:
    model.config.pad_token_id = load_tokenizer(str(directory)).pad_token_id
    with torch.inference_mode():
        return np.asarray(model.eval()(**inputs_of(directory, test_csv)).logits.numpy())


def calibrated(directory: Path, test_csv: Path, temperature: float, rows: slice = slice(None)) -> np.ndarray:
    logits = load_judge(directory, max_length=LENGTH).view_logits(
        load_test(test_csv).rows, tta_views([LENGTH], swap=True)
    )
    return np.asarray(softmax(logits, temperature).mean(axis=0)[rows])


# What it leaves


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_both_outputs_load_without_us_and_judge_as_the_mean_of_the_folds_would(
    family: str, averaged: Path, backbones: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    root, base = averaged, backbones / family
    if family == "bert":
        root = make_students(tmp_path / "root", base, small_train_csv)
        average(quick(root, small_test_csv))
    adapter: Any = PeftModel.from_pretrained(load_base(base, True), str(avg_lora(root)))
    merged = load_whole(merged_model(root), head=True)
    one = plain_logits(adapter, avg_lora(root), small_test_csv)
    two = plain_logits(merged, merged_model(root), small_test_csv)
    np.testing.assert_allclose(one, two, rtol=0, atol=2e-6)
    folds = [merged_by_peft(base, student_dir(root, fold), head=True) for fold in range(N_FOLDS)]
    for name, tensor in merged.state_dict().items():
        expected = torch.stack([fold[name].double() for fold in folds]).mean(dim=0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    plain = AutoModelForSequenceClassification.from_pretrained(merged_model(root))
    assert plain.config.num_labels == 3 and plain.config.id2label[2] == "tie"


def test_the_directories_hold_what_later_steps_read_and_nothing_else_is_left(averaged: Path) -> None:
    common = {"calibration.json", "classifier_head.pt", "classifier_head.safetensors", "text_format.json"}
    common |= {"tokenizer.json", "tokenizer_config.json", "manifest.json"}
    found = {path.name for path in avg_lora(averaged).iterdir()}
    assert found == common | {WEIGHTS, "adapter_config.json"}
    assert {path.name for path in merged_model(averaged).iterdir()} == common | {"config.json", "model.safetensors"}
    for directory in (avg_lora(averaged), merged_model(averaged)):
        manifest = manifest_of(directory)
        assert manifest["stage"] == "step6_lora_ensemble"
        assert manifest["outputs"] == {
            path.name: sha256_file(path) for path in directory.iterdir() if path.name != "manifest.json"
        }
    hidden = {path.name for path in avg_lora(averaged).parent.iterdir() if path.name.startswith(".")}
    assert all(name.endswith(".lock") for name in hidden), hidden


def test_the_manifests_say_what_was_averaged_and_how_well(averaged: Path, small_test_csv: Path) -> None:
    for directory in (avg_lora(averaged), merged_model(averaged)):
        manifest = manifest_of(directory)
        assert (manifest["max_length"], manifest["n_folds"], manifest["folds"]) == (LENGTH, N_FOLDS, [0, 1, 2])
        assert manifest["teachers"] is None and manifest["second_order_leak"] is False
        assert manifest["head_sha256"] == head_sha256(read_head(directory))
        assert manifest["base_model"] == manifest_of(student_dir(averaged, 0))["base_model"]
    conversion = manifest_of(merged_model(averaged))["conversion"]
    assert conversion["method"] == "exact"
    assert 0 < conversion["average_error"] < 1e-5 and 0 <= conversion["merge_error"] < 1e-5
    assert 0.1 < conversion["relative_distance"] < 10
    sizes = conversion["size_bytes"]
    assert sizes["avg_lora"] == (avg_lora(averaged) / WEIGHTS).stat().st_size > sizes["student"] > 0
    assert sizes["merged"] == (merged_model(averaged) / "model.safetensors").stat().st_size
    evaluation = manifest_of(merged_model(averaged))["evaluation"]
    assert evaluation["rows"] == 40 and evaluation["test_csv"] == sha256_file(small_test_csv)
    assert [entry["fold"] for entry in evaluation["folds"]] == [0, 1, 2]
    assert evaluation["merged"] == pytest.approx(evaluation["averaged_exact"], abs=1e-5)
    assert evaluation["averaged_mean"] != pytest.approx(evaluation["averaged_exact"], abs=1e-4)


def test_the_scores_are_those_of_calibrated_probabilities_of_both_orders(averaged: Path, small_test_csv: Path) -> None:
    votes = load_labels(SAMPLE / "test_labels.csv", load_test(small_test_csv).rows["id"].to_pylist())
    evaluation = manifest_of(merged_model(averaged))["evaluation"]
    folds = [calibrated(student_dir(averaged, k), small_test_csv, t) for k, t in enumerate(TEMPERATURES)]
    for entry, probabilities in zip(evaluation["folds"], folds, strict=True):
        assert entry == pytest.approx({"fold": entry["fold"], **score(probabilities, votes).as_dict()}, abs=1e-6)
    ensemble = score(np.mean(folds, axis=0), votes).as_dict()
    assert evaluation["probability_ensemble"] == pytest.approx(ensemble, abs=1e-6)
    merged = score(calibrated(merged_model(averaged), small_test_csv, 2 ** (1 / 3)), votes).as_dict()
    assert evaluation["merged"] == pytest.approx(merged, abs=1e-6)


def test_the_temperature_is_the_geometric_mean_of_the_folds_and_holds_for_these_weights(averaged: Path) -> None:
    for directory in (avg_lora(averaged), merged_model(averaged)):
        calibration = read_calibration(directory)
        assert calibration is not None
        assert calibration.temperature == pytest.approx(2 ** (1 / 3))  # of 0.5, 1 and 4
        assert calibration.views == (f"{LENGTH}", f"{LENGTH} swapped")
        assert calibration.figures["fitted_on"] == "geometric mean over folds"


def test_what_it_prints_names_both_parities_the_distance_and_every_line_of_the_table(
    root: Path, small_test_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average(quick(root, small_test_csv, average_eval_rows=10))
    printed = capsys.readouterr().out
    for words in (
        "average, exact: as written, it is the mean of the folds' weight changes: relative error",
        "average, mean: as written, it is the folds' mean A and mean B: relative error",
        "of the exact one's size apart",
        "merged: every tensor is base + adapter: relative error",
        f"merged: probabilities for 8 rows of {small_test_csv} are those of base + adapter: largest gap",
        "held out from every fold (10 rows)",
        *(f"student of fold {fold}" for fold in range(N_FOLDS)),
        *("averaged, exact", "averaged, mean", "merged", "ensemble of the students"),
    ):
        assert words in printed, words
    assert manifest_of(merged_model(root))["evaluation"]["rows"] == 10


# Without votes


def test_without_a_test_file_it_works_and_says_that_no_unseen_rows_are_left(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    average({name: value for name, value in quick(root, Path()).items() if name not in ("test_csv", "labels_csv")})
    printed = capsys.readouterr().out
    assert "no votes are at hand on rows that none of the students has seen" in printed
    assert "give TEST_CSV and LABELS_CSV" in printed
    for fold in range(N_FOLDS):
        line = next(line for line in printed.splitlines() if line.startswith(f"student of fold {fold} (20 rows)"))
        assert f"{1 + fold / 10:.4f}" in line
    assert manifest_of(merged_model(root))["evaluation"] is None
    assert 0 <= manifest_of(merged_model(root))["conversion"]["merge_error"] < 1e-5


def test_a_test_file_without_votes_proves_the_merge_and_scores_nothing(
    root: Path, small_test_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average(quick(root, small_test_csv, labels_csv="none"))
    printed = capsys.readouterr().out
    assert f"8 rows of {small_test_csv}" in printed and "no votes are at hand" in printed
    assert manifest_of(merged_model(root))["evaluation"] is None


def test_test_rows_whose_prompt_was_trained_on_are_counted(
    root: Path, small_train_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = small_train_csv.read_text("utf-8").splitlines(keepends=True)
    test = tmp_path / "test.csv"
    test.write_text("".join(lines[: len(lines) - 1]), "utf-8")
    known, rows = len(load_test(test).rows), len(load_test(small_train_csv).rows)
    assert 0 < known < rows
    average(quick(root, test, labels_csv="none"))
    assert f"note: {known} of {known} test rows have a prompt that {small_train_csv} has too" in capsys.readouterr().out


# Choices


def test_the_mean_of_the_factors_is_published_when_asked_for(root: Path, small_test_csv: Path) -> None:
    average(quick(root, small_test_csv, average_method="mean"))
    found = load_file(avg_lora(root) / WEIGHTS)
    parts = [load_file(student_dir(root, fold) / WEIGHTS) for fold in range(N_FOLDS)]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, torch.stack([part[name] for part in parts]).mean(dim=0))
    manifest = manifest_of(merged_model(root))
    assert manifest["conversion"]["method"] == "mean" and manifest["conversion"]["average_error"] < 1e-5
    assert manifest["evaluation"]["merged"] == pytest.approx(manifest["evaluation"]["averaged_mean"], abs=1e-5)


def test_a_rank_is_kept_and_its_loss_told(root: Path, small_test_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average(quick(root, small_test_csv, labels_csv="none", average_rank=4))
    assert "cut back to rank 4, which loses at most" in capsys.readouterr().out
    assert json.loads((avg_lora(root) / "adapter_config.json").read_text())["r"] == 4
    assert manifest_of(merged_model(root))["conversion"]["average_error"] > 0.01


def test_weights_of_16_bits_are_held_against_their_own_rounding(root: Path, small_test_csv: Path) -> None:
    average(quick(root, small_test_csv, labels_csv="none", merged_dtype="bfloat16"))
    assert {t.dtype for t in load_file(merged_model(root) / "model.safetensors").values()} == {torch.bfloat16}
    conversion = manifest_of(merged_model(root))["conversion"]
    assert 1e-4 < conversion["merge_weight_error"] < 2**-8 and conversion["merge_error"] < 0.05


def test_a_base_of_16_bits_stays_one_and_scoring_in_16_bits_works(
    backbones: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    base = resaved(backbones / "llama", tmp_path / "base", dtype=torch.bfloat16)
    root = make_students(tmp_path / "root", base, small_train_csv)
    average(quick(root, small_test_csv, average_bf16="1", average_eval_rows=8))
    found = {name: t.dtype for name, t in load_file(merged_model(root) / "model.safetensors").items()}
    assert found.pop("score.weight") == torch.float32 and set(found.values()) == {torch.bfloat16}
    manifest = manifest_of(merged_model(root))
    assert 1e-4 < manifest["conversion"]["merge_weight_error"] < 2**-8 and manifest["conversion"]["merge_error"] < 0.05
    losses = [manifest["evaluation"][name]["log_loss"] for name in ("merged", "averaged_exact")]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_one_fold_is_its_own_average_and_that_is_said(
    root: Path, small_test_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average(quick(root, small_test_csv, folds="2"))
    assert "one fold only: the average is the student of fold 2" in capsys.readouterr().out
    one, two = (load_file(directory / WEIGHTS) for directory in (avg_lora(root), student_dir(root, 2)))
    assert all(torch.equal(one[name], two[name]) for name in two)
    manifest = manifest_of(merged_model(root))
    assert manifest["folds"] == [2] and manifest["conversion"]["relative_distance"] < 1e-12


def test_a_prefix_names_students_elsewhere_and_outputs_go_where_they_are_told(
    root: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    for fold in (0, 2):
        student_dir(root, fold).rename(tmp_path / f"s{fold}")
    places = {"out_lora": tmp_path / "lora", "out_merged": tmp_path / "merged"}
    average(quick(root, small_test_csv, labels_csv="none", lora_dir_prefix=tmp_path / "s", folds="0,2", **places))
    assert manifest_of(tmp_path / "merged")["folds"] == [0, 2]
    assert not avg_lora(root).exists() and not merged_model(root).exists()


def test_students_with_other_starts_are_averaged_exactly_and_a_note_says_so(
    root: Path, small_test_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(student_dir(root, 1), initial_sha256="another", teachers={"llama": 1.0})
    with pytest.raises(ArenaError, match=r"AVERAGE_METHOD=mean: the students started from different factors"):
        average(quick(root, small_test_csv, average_method="mean"))
    average(quick(root, small_test_csv, labels_csv="none"))
    printed = capsys.readouterr().out
    assert "note: the students started from different factors" in printed
    assert "note: the students listened to different teachers" in printed
    assert manifest_of(avg_lora(root))["second_order_leak"] is True
    assert manifest_of(avg_lora(root))["teachers"] == {"llama": 1.0}


# Once, and whole


def test_a_second_run_does_nothing_and_needs_no_torch(averaged: Path, small_test_csv: Path) -> None:
    before = contents(averaged)
    script = REPOSITORY / "scripts" / "average_students.py"
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()\n"
    )
    words = [f"sys.argv = {[str(script), *flags(**quick(averaged, small_test_csv))]!r}\n{code}"]
    done = subprocess.run([sys.executable, "-c", f"import sys\n{words[0]}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{avg_lora(averaged)}: up to date",
        f"{merged_model(averaged)}: up to date",
    ]
    assert contents(averaged) == before


def test_what_changed_is_made_again_and_what_did_not_is_left(
    averaged: Path, small_test_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(averaged, tmp_path / "root")
    lora, merged = contents(avg_lora(root)), contents(merged_model(root))
    average(quick(root, small_test_csv, labels_csv="none"))  # the merged model's scores change, the adapter does not
    assert f"{avg_lora(root)}: up to date" in capsys.readouterr().out
    assert contents(avg_lora(root)) == lora and contents(merged_model(root)) != merged
    average(quick(root, small_test_csv, labels_csv="none", folds="0,1"))
    assert contents(avg_lora(root)) != lora and manifest_of(merged_model(root))["folds"] == [0, 1]
    again = contents(avg_lora(root))
    average(quick(root, small_test_csv, labels_csv="none", folds="0,1", force=True))
    assert contents(avg_lora(root)) != again
    (merged_model(root) / "config.json").unlink()
    average(quick(root, small_test_csv, labels_csv="none", folds="0,1"))
    assert (merged_model(root) / "config.json").is_file()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.norm.weight", r"model\.norm\.weight is not the base's"),
        ("model.layers.0.mlp.up_proj.weight", r"up_proj\.weight is off base \+ adapter by"),
        ("score.weight", r"score\.weight is not the base's"),
    ],
)
def test_a_merge_that_is_wrong_is_not_published_and_the_adapter_stays(
    tensor: str, message: str, root: Path, small_test_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arena_distill.models import merge

    whole = merge.write_merged

    def damage(base: str, adapter_dir: Path, directory: Path, **options: Any) -> Any:
        report = whole(base, adapter_dir, directory, **options)
        edit_weights(directory, lambda tensors: tensors[tensor].mul_(1.001), "model.safetensors")
        return report

    settings = quick(root, small_test_csv, labels_csv="none")
    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_merged", damage)
        with pytest.raises(ArenaError, match=message + r".*nothing was published"):
            average(settings)
    kept = contents(avg_lora(root))
    names = {path.name for path in avg_lora(root).parent.iterdir() if not path.name.endswith(".lock")}
    assert kept and names == {"avg_lora", *(student_dir(root, fold).name for fold in range(N_FOLDS))}
    average(settings)
    assert contents(avg_lora(root)) == kept and merged_model(root).is_dir()


def test_an_average_that_is_wrong_is_not_published_and_the_old_one_stays(
    averaged: Path, small_test_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arena_distill.conversion import average as conversion

    root = copy_of(averaged, tmp_path / "root")
    before, whole = contents(root / "model_save"), conversion.write_average

    def damage(adapters: Any, directory: Path, *options: Any) -> None:
        whole(adapters, directory, *options)
        edit_weights(directory, lambda tensors: next(t for n, t in tensors.items() if "lora_B" in n).mul_(1.001))

    monkeypatch.setattr(conversion, "write_average", damage)
    with pytest.raises(ArenaError, match=r"off the average of the folds by 0\.001.*nothing was published"):
        average(quick(root, small_test_csv, force=True))
    assert contents(root / "model_save") == before


def test_step_5s_own_students_are_averaged(
    backbones: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    from tests.training.distill_runs import distill, make_root
    from tests.training.distill_runs import quick as quick_student

    root = make_root(tmp_path / "root", small_train_csv)
    distill(quick_student(root, backbones / "llama", student_folds="0,1"))
    average(quick(root, small_test_csv, folds="0,1"))
    manifest = manifest_of(merged_model(root))
    assert manifest["second_order_leak"] and manifest["teachers"] == {"llama": 1.0, "qwen2": 1.0}
    assert 0 < manifest["conversion"]["relative_distance"] < 1
    assert {entry["fold"] for entry in manifest["evaluation"]["folds"]} == {0, 1}
