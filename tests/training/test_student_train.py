"""A finished student: complete, up to date, loadable by plain transformers, for every architecture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arena_distill.data.loading import load_test
from arena_distill.data.prompts import TextFormat, View, assemble, tokenize_rows
from arena_distill.inference.judge import load_judge
from arena_distill.models.classifier import pad_batch
from arena_distill.runtime.artifacts import sha256_file
from arena_distill.runtime.errors import ArenaError, DataError, InputError, SettingsError
from arena_distill.training.student_data import load_student_data
from arena_distill.training.student_settings import StudentSettings
from tests.conftest import SAMPLE
from tests.training.student_runs import quick_settings, run_mode

FAMILIES = ("bert", "distilbert", "deberta-v2", "llama", "qwen2", "gemma2")


def test_manifest_names_settings_inputs_and_every_output(student: dict[str, object]) -> None:
    directory = Path(str(student["student_output_model_dir"]))
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["settings"]["student_learning_rate"] == 1e-3
    assert manifest["inputs"]["train_csv"] == sha256_file(Path(str(student["train_csv"])))
    for name, digest in manifest["outputs"].items():
        assert sha256_file(directory / name) == digest
    assert {"model.safetensors", "config.json", "tokenizer.json", "text_format.json", "split.json"} <= set(
        manifest["outputs"]
    )


def test_no_partial_directory_is_left(student: dict[str, object]) -> None:
    directory = Path(str(student["student_output_model_dir"]))
    assert [path.name for path in directory.parent.iterdir() if "partial" in path.name or "replaced" in path.name] == []


def test_second_run_is_up_to_date(student: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(str(student["student_output_model_dir"])) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run_mode("student-train", **student)
    assert "up to date" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_the_student_and_gives_its_logits(
    family: str, backbones: Path, small_train_csv: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "student"
    settings = quick_settings(small_train_csv, backbones / family, directory)
    run_mode("student-train", **settings, student_max_steps=3)
    judge = load_judge(directory, max_length=64)
    rows = load_test(small_test_csv).rows.slice(0, 7)
    sequences, _ = assemble(tokenize_rows(rows, judge.tokenizer), TextFormat.load(directory), [View(64)])
    inputs = pad_batch(sequences, np.arange(len(sequences)), judge.tokenizer.pad_token_id)
    np.savez(tmp_path / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    script = """
import sys
sys.modules["arena_distill"] = None  # any import of ours fails
import numpy, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
inputs = {name: torch.from_numpy(array) for name, array in numpy.load(sys.argv[2]).items()}
with torch.inference_mode():
    numpy.save(sys.argv[3], model(**inputs).logits.numpy())
assert model.config.id2label == {0: "model_a", 1: "model_b", 2: "tie"}
"""
    command = [sys.executable, "-c", script, str(directory), str(tmp_path / "inputs.npz"), str(tmp_path / "plain.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "plain.npy"), judge.logits(rows), rtol=1e-5, atol=1e-6)


def test_a_foreign_directory_is_not_overwritten(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "mine")
    for force in (False, True):
        with pytest.raises(InputError, match="did not make"):
            run_mode("student-train", **settings, force=force)
    (tmp_path / "mine" / "manifest.json").write_text('{"schema_version": 1, "fingerprint": "other"}')
    with pytest.raises(InputError, match="did not make"):
        run_mode("student-train", **settings)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_second_job_on_the_same_student_is_refused(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    from arena_distill.runtime.artifacts import locked

    with locked(tmp_path / "s"), pytest.raises(ArenaError, match="another job"):
        run_mode("student-train", **quick_settings(small_train_csv, backbones / "bert", tmp_path / "s"))


@pytest.mark.parametrize("name", ["no/such/model", "./model", "/nowhere/model", "model_save/gone/bert"])
def test_a_path_to_nothing_is_never_taken_for_a_hub_name(name: str, small_train_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model directory"):
        run_mode(
            "student-train", train_csv=small_train_csv, student_model=name, student_output_model_dir=tmp_path / "s"
        )


def test_a_truncated_backbone_is_refused_by_name(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(backbones / "bert", tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="broken"):
        run_mode("student-train", **quick_settings(small_train_csv, broken, tmp_path / "s"))


def test_lengths_beyond_the_position_table_are_refused(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    settings = quick_settings(small_train_csv, backbones / "distilbert", tmp_path / "s") | {"student_max_length": 513}
    with pytest.raises(SettingsError, match="at most 512"):
        run_mode("student-train", **settings)


def test_extra_rows_train_but_are_never_held_out_and_share_no_prompt_with_held_out_rows() -> None:
    settings = StudentSettings(
        mode="student-train",
        train_csv=str(SAMPLE / "train.csv"),
        student_extra_csvs=f"{SAMPLE / 'ultrafeedback.csv'},{SAMPLE / 'ultrafeedback_ties.csv'}",
    )
    data = load_student_data(settings)
    held_out = {*data.calibration["prompt_hash"].to_pylist(), *data.holdout["prompt_hash"].to_pylist()}
    assert not held_out & set(data.train["prompt_hash"].to_pylist())
    assert -1 not in data.calibration["base_idx"].to_pylist() + data.holdout["base_idx"].to_pylist()
    extra = data.train["base_idx"].to_pylist().count(-1)
    assert extra == data.counts.extra - data.counts.held_out_extra > 300


def test_stats_only_counts_and_trains_nothing(
    backbones: Path, small_train_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s")
    run_mode(
        "student-train",
        **settings,
        student_stats_only=True,
        student_dedup_by_prompt=True,
        student_extra_csvs=SAMPLE / "ultrafeedback.csv",
    )
    out = capsys.readouterr().out
    assert "(160 base + 300 extra)" in out
    assert "rows/s" in out and "tokens/s" in out and "deduplicated" in out
    assert not (tmp_path / "s").exists()


def test_everybody_who_may_read_the_directory_may_read_the_weights(student: dict[str, object]) -> None:
    directory = Path(str(student["student_output_model_dir"]))
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_test_file_that_infer_will_need_is_missed_before_training(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s")
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        run_mode("student-train", **settings, test_csv=tmp_path / "nowhere.csv")


def test_a_refused_run_leaves_no_partial_directory(small_train_csv: Path, backbones: Path, tmp_path: Path) -> None:
    settings = quick_settings(small_train_csv, backbones / "distilbert", tmp_path / "s") | {"student_max_length": 513}
    with pytest.raises(SettingsError):
        run_mode("student-train", **settings)
    assert [path.name for path in tmp_path.iterdir()] == [".s.lock"]


@pytest.mark.parametrize("name", ["wand", "tensorboard,comet"])
def test_an_unknown_tracker_is_refused_at_once(name: str, small_train_csv: Path) -> None:
    with pytest.raises(SettingsError, match="unknown tracker"):
        run_mode("student-train", train_csv=small_train_csv, report_to=name)


def test_tensorboard_files_outlive_training(
    backbones: Path, small_train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s") | {"output_dir": tmp_path}
    run_mode("student-train", **settings, student_max_steps=2, report_to="tensorboard", run="tracked")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    assert list((tmp_path / "logs" / "tensorboard" / "tracked").glob("*tfevents*"))


@pytest.mark.parametrize("run", ["..", "a/b", ".hidden"])
def test_a_run_name_that_would_leave_its_directory_is_refused(run: str) -> None:
    with pytest.raises(SettingsError, match="--run"):
        run_mode("student-train", run=run)


def test_a_tokenizer_with_more_tokens_than_the_model_knows_is_refused(
    backbones: Path, small_train_csv: Path, tmp_path: Path
) -> None:
    import shutil

    from arena_distill.models.classifier import load_tokenizer

    mixed = shutil.copytree(backbones / "bert", tmp_path / "mixed")
    tokenizer = load_tokenizer(str(mixed))
    tokenizer.add_tokens([f"<new{n}>" for n in range(5000)])
    tokenizer.save_pretrained(mixed)
    with pytest.raises(InputError, match="do not belong together"):
        run_mode("student-train", **quick_settings(small_train_csv, mixed, tmp_path / "s"))


def test_a_student_whose_weights_were_cut_is_not_up_to_date(
    backbones: Path, small_train_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s")
    run_mode("student-train", **settings, student_max_steps=1)
    weights = tmp_path / "s" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    run_mode("student-train", **settings, student_max_steps=1)
    assert "up to date" not in capsys.readouterr().out
    assert weights.read_bytes() == whole


def test_a_backbone_without_tokenizer_is_refused(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(backbones / "bert", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match="no tokenizer"):
        run_mode("student-train", **quick_settings(small_train_csv, bare, tmp_path / "s"))


def test_a_diverging_run_says_so(backbones: Path, small_train_csv: Path, tmp_path: Path) -> None:
    settings = quick_settings(small_train_csv, backbones / "bert", tmp_path / "s") | {"student_learning_rate": 1e30}
    with pytest.raises(SettingsError, match="diverged"):
        run_mode("student-train", **settings)
