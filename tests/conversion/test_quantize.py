"""Step 7 as a stage: what it publishes, what it refuses, and what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arena_distill.conversion.quantize_settings import QuantizeSettings
from arena_distill.evaluation.calibration_file import read_calibration
from arena_distill.evaluation.metrics import softmax
from arena_distill.inference.judge import load_judge
from arena_distill.inference.tta import tta_views
from arena_distill.models.head_file import HEAD_SAFETENSORS
from arena_distill.runtime.artifacts import MANIFEST, read_manifest, sha256_path
from arena_distill.runtime.errors import ArenaError, InputError, SettingsError
from arena_distill.runtime.settings import parse_settings
from tests.conftest import REPOSITORY, SAMPLE
from tests.conversion.quantize_cases import LENGTH, make_student, quantize, sample_part, test_rows


@pytest.fixture(scope="module")
def student(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(backbones / "distilbert", tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def quantized(student: Path) -> Path:
    quantize(student, student.with_name("quantized"))
    return student.with_name("quantized")


@pytest.fixture
def copy(student: Path, tmp_path: Path) -> Path:
    """A student to damage."""
    copied = shutil.copytree(student, tmp_path / "model")
    return Path(copied)


def probabilities(directory: Path) -> np.ndarray:
    """Of the test rows in both orders, calibrated."""
    logits = load_judge(directory, max_length=LENGTH).view_logits(test_rows(), tta_views([LENGTH], swap=True))
    return np.asarray(softmax(logits, 1.5).mean(axis=0))


def test_the_report_says_what_the_judges_say(student: Path, quantized: Path) -> None:
    report = json.loads((quantized / "quantization_report.json").read_text())
    rows = test_rows()
    p, q = (probabilities(path) for path in (student, quantized))
    quantize(student, quantized.with_name("all"), quant_eval_rows=0)
    whole = json.loads((quantized.with_name("all") / "quantization_report.json").read_text())
    assert whole["rows"] == len(rows) and report["rows"] == 200
    assert whole["kl"] == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-3)
    assert whole["largest_probability_gap"] == pytest.approx(float(np.abs(p - q).max()), rel=1e-3)
    assert whole["log_loss"]["increase"] == pytest.approx(
        whole["scores"]["after"]["log_loss"] - whole["scores"]["before"]["log_loss"]
    )
    assert whole["agreement"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()


def test_the_report_holds_the_error_of_every_layer(student: Path, quantized: Path) -> None:
    report = json.loads((quantized / "quantization_report.json").read_text())
    weights = load_file(student / "model.safetensors")
    bodies = [name for name in weights if name.endswith("weight") and weights[name].ndim == 2]
    linears = [n for n in bodies if "embedding" not in n and "classifier" not in n]
    assert sorted(f"{layer['module']}.weight" for layer in report["layers"]) == sorted(linears)
    assert all(1e-4 < layer["weight_error"] < 0.02 for layer in report["layers"])
    assert report["size_bytes"]["after"] < report["size_bytes"]["before"]


def test_the_manifest_passes_on_what_the_model_was_trained_with(student: Path, quantized: Path) -> None:
    own, made = read_manifest(student), read_manifest(quantized)
    assert own is not None and made is not None
    assert made["stage"] == "step7_quantize_gptq"
    assert all(made[name] == own[name] for name in ("max_length", "n_folds", "teachers", "head_sha256"))
    assert made["quantization"]["method"] == "torchao-int8"


def test_the_calibration_is_that_of_the_model_for_the_new_weights(quantized: Path) -> None:
    calibration = read_calibration(quantized)
    assert calibration is not None
    assert calibration.temperature == 1.5


def test_a_finished_output_is_found_without_importing_torch(student: Path, quantized: Path) -> None:
    worker = REPOSITORY / "scripts" / "quantize_gptq_calibrated.py"
    code = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({str(worker)!r}, run_name='__main__')"
    flags = ["--model-dir", student, "--out-dir", quantized, "--calib-csv", SAMPLE / "train.csv"]
    flags += ["--test-csv", SAMPLE / "test.csv", "--max-calib-samples", 32, "--quant-eval-rows", 200]
    command = [sys.executable, "-c", code, *map(str, flags)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{quantized}: up to date")


def test_another_setting_makes_it_anew(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(student, tmp_path / "out", quant_eval_rows=150)
    quantize(student, tmp_path / "out", quant_eval_rows=180)
    assert "quant_eval_rows 150 -> 180" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "quantization_report.json").read_text())["rows"] == 180


def test_above_the_log_loss_bound_nothing_is_published_and_the_older_one_stays(
    student: Path, quantized: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(quantized, tmp_path / "out"))
    older = sha256_path(out)
    rows = test_rows()
    p, q = (probabilities(path) for path in (student, quantized))
    worst = (q - p).argmin(axis=1)  # votes for whatever quantization made less probable
    labels = tmp_path / "labels.csv"
    names = ("model_a", "model_b", "tie")
    lines = [f"{row},{names[vote]}" for row, vote in zip(rows["id"].to_pylist(), worst, strict=True)]
    labels.write_text("\n".join(["id,winner", *lines]) + "\n")
    with pytest.raises(ArenaError, match=r"log loss rises by .* more than QUANT_MAX_LOGLOSS_INCREASE=0"):
        quantize(student, out, labels_csv=str(labels), quant_max_logloss_increase=0.0)
    assert sha256_path(out) == older
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_without_votes_the_bound_holds_for_the_divergence(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArenaError, match="mean KL divergence is"):
        quantize(student, tmp_path / "out", labels_csv="none", quant_max_logloss_increase=0.0)
    quantize(student, tmp_path / "out", labels_csv="none")
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["log_loss"] is None and report["scores"] is None and report["kl"] > 0
    assert "no votes on the test rows" in capsys.readouterr().out


def test_without_a_test_file_rows_are_set_aside_from_the_calibration_texts(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sample_part("train.csv", 100, tmp_path / "texts.csv")
    monkeypatch.chdir(tmp_path)
    quantize(student, tmp_path / "out", test_csv="", calib_csv=str(texts))
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["rows"] == 20
    assert "training may have" in report["rows_are"]


def test_four_bits_of_an_encoder_are_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="int8 has 8 bits only"):
        quantize(student, tmp_path / "out", quant_bits=4)
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_head_is_refused(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({n: t for n, t in weights.items() if "classifier" not in n}, copy / "model.safetensors", {"format": "pt"})
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="hold no classification head"):
        quantize(copy, tmp_path / "out", quant_max_length=LENGTH)


def test_a_model_with_another_head_than_its_manifest_names_is_refused(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"] = torch.randn_like(weights["classifier.weight"])
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="foreign or random head"):
        quantize(copy, tmp_path / "out")


def test_a_model_with_a_head_of_two_classes_is_refused(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][:2].contiguous()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="random head"):
        quantize(copy, tmp_path / "out", quant_max_length=LENGTH)


def test_a_quantized_model_is_not_quantized_again(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is quantized already"):
        quantize(quantized, tmp_path / "out")


def test_an_adapter_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter -> merge it first"):
        quantize(copy, tmp_path / "out")


def test_what_step_7_did_not_make_is_not_replaced(student: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="step7_quantize_gptq did not make"):
        quantize(student, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_an_output_inside_the_model_is_refused(copy: Path) -> None:
    with pytest.raises(InputError, match="choose another OUT_DIR"):
        quantize(copy, copy / "quantized")


def test_calibrating_on_the_test_file_is_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CALIB_CSV is the test file"):
        quantize(student, tmp_path / "out", calib_csv=str(SAMPLE / "test.csv"))


def test_cut_off_weights_are_refused_before_anything_is_loaded(copy: Path, tmp_path: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        quantize(copy, tmp_path / "out")


def test_a_tokenizer_may_lie_elsewhere(copy: Path, student: Path, tmp_path: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="holds no tokenizer -> give the directory of one in TOKENIZER_DIR"):
        quantize(copy, tmp_path / "out", quant_max_length=LENGTH)
    quantize(copy, tmp_path / "out", quant_max_length=LENGTH, tokenizer_dir=str(student))
    rows = test_rows().slice(0, 20)
    expected = load_judge(student, max_length=LENGTH).logits(rows)
    assert np.abs(load_judge(tmp_path / "out", max_length=LENGTH).logits(rows) - expected).max() < 0.3


def test_bitsandbytes_writes_what_loads_again(student: Path, tmp_path: Path) -> None:
    quantize(student, tmp_path / "out", quant_method="bitsandbytes-int8", quant_min_agreement=0.9)
    assert json.loads((tmp_path / "out" / "quantization_config.json").read_text())["method"] == "bitsandbytes-int8"
    rows = test_rows().slice(0, 60)
    before, after = (load_judge(p, max_length=LENGTH).logits(rows) for p in (student, tmp_path / "out"))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() >= 0.9  # it rounds activations to 8 bits too
    assert (tmp_path / "out" / HEAD_SAFETENSORS).is_file()


def test_the_flags_of_the_interface_are_known_and_nobodys_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITS", "GROUP_SIZE", "MAX_LENGTH", "MAX_CALIB_SAMPLES"):
        monkeypatch.setenv(name, "7")
    flags = "--bits 4 --group-size 64 --max-calib-samples 99 --max-length 200 --model-dir m --out-dir o --calib-csv c"
    settings = parse_settings(QuantizeSettings, flags.split(), program="x", description="")
    assert (settings.quant_bits, settings.quant_group_size) == (4, 64)
    assert (settings.quant_max_calib_samples, settings.quant_max_length) == (99, 200)
    assert parse_settings(QuantizeSettings, [], program="x", description="").quant_bits == 8


@pytest.mark.parametrize("flags", ["--bits 3", "--group-size 100", "--bits 4 --quant-method int8"])
def test_impossible_settings_are_refused(flags: str) -> None:
    with pytest.raises(SettingsError):
        parse_settings(QuantizeSettings, flags.split(), program="x", description="")
