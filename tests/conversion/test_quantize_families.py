"""Every family through step 7: the head bit for bit, the verdicts kept, and nothing loads with another head."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from arena_distill.inference.judge import load_judge
from arena_distill.models.gptq_linear import GptqLinear
from arena_distill.models.head_file import HEAD_SAFETENSORS, head_sha256, read_head
from arena_distill.models.quantized import QUANTIZATION_FILE, quantized_weights
from arena_distill.runtime.artifacts import MANIFEST, read_manifest
from arena_distill.runtime.errors import InputError
from tests.conversion.quantize_cases import (
    DECODERS,
    ENCODERS,
    LENGTH,
    make_student,
    put_noise_head,
    quantize,
    unseen_rows,
)


@dataclass(frozen=True)
class Case:
    family: str
    student: Path
    quantized: Path


@pytest.fixture(scope="module", params=(*DECODERS, *ENCODERS))
def case(request: pytest.FixtureRequest, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    base = tmp_path_factory.mktemp(request.param)
    student = make_student(backbones / request.param, base / "student")
    quantize(student, base / "quantized")
    return Case(request.param, student, base / "quantized")


def test_the_head_survives_bit_for_bit(case: Case) -> None:
    own = read_head(case.student)
    model = load_judge(case.quantized, max_length=LENGTH).model
    for found in (read_head(case.quantized), dict(model.named_parameters())):
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in own.items()
        )
    manifest = read_manifest(case.quantized)
    assert manifest is not None
    assert manifest["head_sha256"] == head_sha256(own)


def test_at_least_97_percent_of_rows_keep_their_verdict(case: Case) -> None:
    before = load_judge(case.student, max_length=LENGTH).logits(unseen_rows())
    after = load_judge(case.quantized, max_length=LENGTH).logits(unseen_rows())
    assert len(set(before.argmax(axis=1))) > 1, "the head says the same of every row"
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() >= 0.97
    assert 0 < np.abs(before - after).mean() < 0.05 * before.std()


def test_all_layers_but_the_head_hold_integers(case: Case) -> None:
    model = load_judge(case.quantized, max_length=LENGTH).model
    names = [name for name, _ in quantized_weights(model)]
    kept = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in names]
    assert names
    assert sorted(kept) == sorted({name.rpartition(".")[0] for name in read_head(case.student)})
    assert all(isinstance(model.get_submodule(name), GptqLinear) for name in names) == (case.family in DECODERS)


def test_the_configuration_says_how_it_was_quantized(case: Case) -> None:
    quantization = json.loads((case.quantized / QUANTIZATION_FILE).read_text())
    if case.family in DECODERS:
        assert (quantization["method"], quantization["bits"], quantization["group_size"]) == ("gptq", 8, 32)  # not 128
        stored = json.loads((case.quantized / "quantize_config.json").read_text())
        assert (stored["checkpoint_format"], stored["desc_act"], stored["sym"]) == ("gptq", False, True)
        assert not any(value for name, value in stored["meta"].items() if "path" in name), "no paths of this machine"
        config = json.loads((case.quantized / "config.json").read_text())
        assert config["architectures"][0].endswith("ForSequenceClassification")
        assert config["tie_word_embeddings"] is False, "auto-gptq would lose the embeddings (tests/compat)"
    else:
        assert (quantization["method"], quantization["bits"]) == ("torchao-int8", 8)


def test_a_random_head_is_refused(case: Case, tmp_path: Path) -> None:
    copy = shutil.copytree(case.quantized, tmp_path / "copy")
    put_noise_head(copy)
    with pytest.raises(InputError, match=r"is not the head that this model was made with"):
        load_judge(copy, max_length=LENGTH)


def test_a_random_head_with_a_forged_hash_fails_the_probe(case: Case, tmp_path: Path) -> None:
    copy = shutil.copytree(case.quantized, tmp_path / "copy")
    put_noise_head(copy)
    from safetensors.torch import load_file

    forged = head_sha256(load_file(copy / HEAD_SAFETENSORS))
    for name in (QUANTIZATION_FILE, MANIFEST):
        document = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(document | {"head_sha256": forged}))
    with pytest.raises(InputError, match="answers otherwise than when it was made"):
        load_judge(copy, max_length=LENGTH)


def test_a_missing_head_is_refused(case: Case, tmp_path: Path) -> None:
    copy = shutil.copytree(case.quantized, tmp_path / "copy")
    (copy / HEAD_SAFETENSORS).unlink()
    with pytest.raises(InputError, match="the head would be random"):
        load_judge(copy, max_length=LENGTH)


def test_half_precision_moves_probabilities_little(case: Case) -> None:
    rows = unseen_rows().slice(0, 40)
    full = load_judge(case.quantized, max_length=LENGTH).logits(rows)
    half = load_judge(case.quantized, max_length=LENGTH, dtype="bfloat16").logits(rows)
    assert 0 < np.abs(full - half).max() < 0.1 * np.abs(full).max()
