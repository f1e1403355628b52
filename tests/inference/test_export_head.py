"""A student's head in a file of its own: what was trained, bit by bit, whatever the student."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arena_distill.inference.export_head import ExportHeadSettings, export_head
from arena_distill.models.head_file import head_sha256
from arena_distill.runtime.errors import InputError, SettingsError
from arena_distill.runtime.settings import parse_settings
from tests.conftest import REPOSITORY
from tests.inference.predict_runs import arguments, make_student

HEADS = {  # tensors of a head by family
    "llama": {"score.weight"},
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"},
    "distilbert": {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    "deberta-v2": {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"},
}


def export(**settings: object) -> None:
    words = arguments(Path(), **settings)
    export_head(parse_settings(ExportHeadSettings, words, program="x", description=""))


def read(file: Path) -> dict[str, torch.Tensor]:
    """By the formats' own readers."""
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


@pytest.mark.parametrize("family", HEADS)
def test_the_head_is_that_of_the_weights_bit_by_bit(
    family: str, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification

    student = make_student(tmp_path / "student", backbones / family, "plain")
    model = AutoModelForSequenceClassification.from_pretrained(student).state_dict()
    for suffix in (".pt", ".safetensors"):
        out = tmp_path / "heads" / f"head{suffix}"
        export(model_dir=student, out=out)
        head = read(out)
        assert head.keys() == HEADS[family]
        assert all(torch.equal(tensor, model[name]) for name, tensor in head.items())
        printed = capsys.readouterr().out
        assert all(name in printed for name in head)
        assert printed.endswith(f"head_sha256 {head_sha256(head)}\n")


@pytest.mark.parametrize("family", HEADS)
def test_adapter_and_merged_model_export_the_same_head(family: str, backbones: Path, tmp_path: Path) -> None:
    merged = make_student(tmp_path / "merged", backbones / family, "merged")
    for student in (merged, tmp_path / "merged_adapter"):
        export(model_dir=student, out=tmp_path / f"{student.name}.pt")
    one, two = read(tmp_path / "merged.pt"), read(tmp_path / "merged_adapter.pt")
    assert one.keys() == two.keys() == HEADS[family]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_second_export_says_up_to_date_without_importing_torch(students: Path, tmp_path: Path) -> None:
    settings = {"model_dir": students / "bert_plain", "out": tmp_path / "head.pt"}
    export(**settings)
    script = (
        "import sys; sys.path.insert(0, 'scripts'); sys.argv[0] = 'x'\nimport export_classifier_head\n"
        "export_classifier_head.main()\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *arguments(tmp_path, **settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.splitlines() == [f"{tmp_path / 'head.pt'}: up to date (FORCE=1 exports again)", "[]"]
    (tmp_path / "head.pt").write_bytes(b"damaged")
    export(**settings)
    assert read(tmp_path / "head.pt").keys() == HEADS["bert"]


def test_the_head_that_a_student_came_with_is_left_as_it_is(students: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = students / "llama_merged" / "classifier_head.pt"
    before = own.stat()
    export(model_dir=students / "llama_merged", out="", force=True)
    assert f"{own}: up to date (the student came with it)" in capsys.readouterr().out
    assert own.stat() == before


def test_a_new_safetensors_file_among_the_weights_is_refused_as_they_would_no_longer_be_the_calibrated_ones(
    students: Path,
) -> None:
    out = students / "bert_plain" / "head.safetensors"
    with pytest.raises(InputError, match="lies among the weights"):
        export(model_dir=students / "bert_plain", out=out)
    assert not out.exists()


def test_a_head_that_is_not_the_one_the_manifest_names_is_refused(backbones: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    student = make_student(tmp_path / "student", backbones / "llama", "merged")
    weights = load_file(student / "model.safetensors")
    weights["score.weight"] = torch.randn_like(weights["score.weight"])
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its head is .*, and its manifest says"):
        export(model_dir=student, out=tmp_path / "head.pt")
    assert not (tmp_path / "head.pt").exists()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_backbone_has_no_trained_head(family: str, backbones: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished student"):
        export(model_dir=backbones / family, out=tmp_path / "head.pt")


def test_other_file_types_are_refused(students: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.pt or \.safetensors"):
        export(model_dir=students / "bert_plain", out=tmp_path / "head.bin")
