"""What step 8 refuses, before it works for an hour, and by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arena_distill.models.head_file import HEAD_PT, read_head
from arena_distill.runtime.errors import ArenaError, DataError, InputError, SettingsError
from tests.conftest import REPOSITORY
from tests.inference.predict_runs import arguments, calibrate, changed_csv, infer, results, sign

Case = Callable[[Path, Path, Path], dict[str, object]]


def _no_id(root: Path, student: Path, test: Path) -> dict[str, object]:
    return {"test_csv": changed_csv(test, root / "t.csv", lambda lines: [line.pop("id") for line in lines])}


def _id_twice(root: Path, student: Path, test: Path) -> dict[str, object]:
    return {"test_csv": changed_csv(test, root / "t.csv", lambda lines: lines[3].update(id=lines[0]["id"]))}


def _file_that_is_no_submission(root: Path, student: Path, test: Path) -> dict[str, object]:
    shutil.copyfile(test, root / "votes.csv")
    return {"out": root / "votes.csv"}


def _test_file(root: Path, student: Path, test: Path) -> dict[str, object]:
    copy = shutil.copyfile(test, root / "t.csv")
    return {"test_csv": copy, "out": root / "." / "t.csv"}


def _calibration_as_manifest(root: Path, student: Path, test: Path) -> dict[str, object]:
    shutil.copyfile(student / "calibration.json", root / "out.manifest.json")
    return {"temperature_json": root / "out.manifest.json"}


def _unfinished(root: Path, student: Path, test: Path) -> dict[str, object]:
    copy = Path(shutil.copytree(student, root / "student"))
    (copy / "manifest.json").unlink()
    return {"model_dir": copy}


def _cut_off(root: Path, student: Path, test: Path) -> dict[str, object]:
    copy = Path(shutil.copytree(student, root / "student"))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    return {"model_dir": copy}


def _no_judge(root: Path, student: Path, test: Path) -> dict[str, object]:
    copy = Path(shutil.copytree(student, root / "student"))
    (copy / "text_format.json").unlink()
    return {"model_dir": copy}


def _without_max_length(root: Path, student: Path, test: Path) -> dict[str, object]:
    copy = Path(shutil.copytree(student, root / "student"))
    sign(copy, max_length=None)
    return {"model_dir": copy}


@pytest.mark.parametrize(
    ("case", "error", "says"),
    [
        (_no_id, DataError, "has no column 'id'"),
        (_id_twice, DataError, r"row 4, column 'id': id .* stands already in row 1"),
        (_file_that_is_no_submission, InputError, "is no submission, and would be overwritten"),
        (_test_file, InputError, "would overwrite an input"),
        (_calibration_as_manifest, InputError, "would overwrite an input"),
        (lambda root, student, test: {"out": student / "out.csv"}, InputError, "lies inside the model"),
        (lambda root, student, test: {"out": root / "out.txt"}, SettingsError, r"ends in \.csv"),
        (lambda root, student, test: {"model_dir": root / "nothing"}, InputError, "nothing: no such directory"),
        (lambda root, student, test: {"model_dir": "", "output_dir": root}, InputError, "run step 6"),
        (lambda root, student, test: {"test_csv": root / "nothing.csv"}, InputError, "nothing.csv: no such file"),
        (lambda root, student, test: {"temperature_json": root / "no.json"}, InputError, "no.json: cannot be read"),
        (lambda root, student, test: {"head_path": root / "no.pt"}, InputError, "no.pt: no such head"),
        (lambda root, student, test: {"tta_lengths": "9"}, SettingsError, "9 tokens are too few"),
        (lambda root, student, test: {"tta_lengths": "64,x"}, SettingsError, "token counts separated by commas"),
        (lambda root, student, test: {"tta_lengths": "64,513"}, SettingsError, "at most 512 tokens, not 513"),
        (_unfinished, InputError, r"no finished student there \(no manifest.json\)"),
        (_cut_off, InputError, "model.safetensors: missing or cut off"),
        (_no_judge, InputError, "text_format.json: missing"),
        (_without_max_length, SettingsError, "no max_length"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_nothing_is_written(
    case: Case, error: type[ArenaError], says: str, students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    student = students / "bert_plain"
    (tmp_path / "run").mkdir()
    settings = {"model_dir": student, "test_csv": small_test_csv} | case(tmp_path / "run", student, small_test_csv)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(error, match=says):
        infer(tmp_path / "run", **settings)
    left = {path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    assert left == set(before)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_logits_that_are_no_numbers_are_refused(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    student = Path(shutil.copytree(students / "llama_plain", tmp_path / "student"))
    weights = load_file(student / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    sign(student)
    calibrate(student)
    with pytest.raises(InputError, match=r"student: the model gives NaN or infinite logits"):
        infer(tmp_path, model_dir=student, test_csv=small_test_csv)
    assert not results(tmp_path)


# Heads


def _torch_file(tensors: dict[str, Any], path: Path) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (lambda own, path: _torch_file({n: torch.randn_like(t) for n, t in own.items()}, path), "foreign or random"),
        (lambda own, path: _torch_file({n: t * 1.0001 for n, t in own.items()}, path), "foreign or random"),
        (lambda own, path: _torch_file({n: t[:2] for n, t in own.items()}, path), "no layer with 3 outputs"),
        (lambda own, path: _torch_file({n: t / 0 for n, t in own.items()}, path), "NaN or infinite"),
        (lambda own, path: _torch_file({**own, "model.norm.weight": torch.ones(3, 3)}, path), "which is of no head"),
        (lambda own, path: _torch_file({"score.weight": "text"}, path), "no dictionary of tensors"),
        (lambda own, path: path.write_text("no head") and path, "cannot be read as a head"),
    ],
    ids=["random", "nearly", "two classes", "infinite", "more than a head", "no tensors", "no file of torch"],
)
def test_a_head_that_the_model_was_not_trained_with_is_refused_before_the_model_is_loaded(
    head: Callable[[Any, Path], Path],
    says: str,
    students: Path,
    small_test_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from arena_distill.inference import predict

    student = students / "llama_lora"
    given = head(read_head(student), tmp_path / "head.pt")
    monkeypatch.setattr(predict, "load_judge", None)
    with pytest.raises(InputError, match=says) as refusal:
        infer(tmp_path, model_dir=student, test_csv=small_test_csv, head_path=given)
    assert str(given) in str(refusal.value)
    assert not results(tmp_path)


def test_a_foreign_students_head_is_refused_and_the_own_one_accepted_in_every_form(
    students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    settings = {"model_dir": students / "llama_merged", "test_csv": small_test_csv, "tta_swap": False}
    with pytest.raises(InputError, match=r"llama_plain: is the head .*, not that of .*llama_merged"):
        infer(tmp_path, **settings, classifier_from_dir=students / "llama_plain")
    own = students / "llama_merged"
    infer(tmp_path, **settings)
    expected = results(tmp_path)
    for given in (
        {"head_path": own / HEAD_PT},
        {"head_path": own / "classifier_head.safetensors"},
        {"classifier_from_dir": students / "llama_lora"},  # the adapter that was merged
    ):
        infer(tmp_path, **settings, **given)
        assert results(tmp_path) == expected


def test_both_ways_to_name_a_head_exclude_each_other(students: Path, small_test_csv: Path, tmp_path: Path) -> None:
    own = students / "llama_merged"
    with pytest.raises(InputError, match="give one of the two"):
        infer(tmp_path, model_dir=own, test_csv=small_test_csv, head_path=own / HEAD_PT, classifier_from_dir=own)


# Programs


def test_the_program_for_whole_weights_sends_quantized_students_to_the_other(
    students: Path, small_test_csv: Path, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(students / "bert_plain", tmp_path / "student"))
    (student / "quantization_config.json").write_text('{"method": "gptq", "bits": 8}', "utf-8")
    words = arguments(tmp_path, model_dir=student, test_csv=small_test_csv)
    program = REPOSITORY / "scripts" / "student_infer_hf.py"
    done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True)
    assert done.returncode == 3
    assert (
        done.stderr == f"error: {student}: has quantized weights -> scripts/student_gptq_infer.py predicts with them\n"
    )
