"""Loading quantized classifiers: exactly what the files say, and never with weights that nobody stored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from arena_distill.inference.judge import load_judge
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.gptq_linear import GptqLinear
from arena_distill.models.head_file import head_sha256, read_head, save_head
from arena_distill.models.quantized import QUANTIZATION_FILE, is_quantized, load_quantized, quantized_weights
from arena_distill.runtime.errors import InputError, SettingsError

GROUP = 16


def stored(weight: torch.Tensor, bits: int, group: int = GROUP) -> dict[str, torch.Tensor]:
    """A weight rounded to nearest, in GPTQ's format version 1, written down from its description."""
    outputs, inputs = weight.shape
    packed, middle = 32 // bits, 2 ** (bits - 1)
    grouped = weight.reshape(outputs, -1, group)
    scales = (grouped.abs().amax(dim=2) / (middle - 1)).half()
    unsigned = (grouped / scales.float()[:, :, None]).round().clamp(-middle, middle - 1).reshape(
        outputs, inputs
    ) + middle
    qweight = torch.zeros(inputs // packed, outputs, dtype=torch.int64)
    for place in range(packed):
        qweight |= unsigned.T[place::packed].long() << bits * place
    zero = sum((middle - 1) << bits * place for place in range(packed))
    return {
        "qweight": signed(qweight),
        "qzeros": signed(torch.full((inputs // group, outputs // packed), zero)),
        "scales": scales.T.contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }


def signed(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_what_the_format_describes(bits: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    tensors = stored(weight, bits)
    offset = torch.randn(24) if bias else None
    layer = GptqLinear.from_stored(tensors | ({"bias": offset} if offset is not None else {}), bits)
    scales = tensors["scales"].float().T.repeat_interleave(GROUP, dim=1)
    expected = (weight / scales).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scales
    assert torch.equal(layer.dequantized(), expected)
    states = torch.randn(2, 5, 64)
    assert torch.allclose(layer(states), torch.nn.functional.linear(states, expected, offset), atol=1e-5)
    assert layer(states.bfloat16()).dtype == torch.bfloat16


def damaged(kind: str) -> dict[str, torch.Tensor]:
    tensors = stored(torch.randn(24, 64), 8)
    if kind == "missing":
        del tensors["scales"]
    elif kind == "order":
        tensors["g_idx"] = tensors["g_idx"].flip(0)
    elif kind == "zeros":
        tensors["qzeros"] += 1
    elif kind == "shape":
        tensors["scales"] = tensors["scales"][:, :-1]
    elif kind == "type":
        tensors["qweight"] = tensors["qweight"].long()
    return tensors


@pytest.mark.parametrize("kind", ["missing", "order", "zeros", "shape", "type"])
def test_what_is_no_symmetric_layer_of_version_1_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="has"):
        GptqLinear.from_stored(damaged(kind), 8)


@pytest.fixture(scope="module")
def gptq(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 classifier (with biases) in GPTQ format, and beside it the model that it stands for."""
    directory = tmp_path_factory.mktemp("gptq")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(backbones / "qwen2", num_labels=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
        model.score.weight.normal_()
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in list(model.named_parameters()):
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and ".layers." in name and parameter.ndim == 2:
            rounded = stored(parameter.detach(), 8)
            parameter.data = GptqLinear.from_stored(rounded, 8).dequantized()
            tensors |= {f"{owner}.{part}": tensor for part, tensor in rounded.items()}
        else:
            tensors[name] = parameter.detach()
    model.save_pretrained(directory / "plain")
    out = Path(shutil.copytree(directory / "plain", directory / "gptq"))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    for place in (out, directory / "plain"):
        load_tokenizer(str(backbones / "qwen2")).save_pretrained(place)
    save_head(out)
    document = {"method": "gptq", "bits": 8, "head_sha256": head_sha256(read_head(out))}
    (out / QUANTIZATION_FILE).write_text(json.dumps(document))
    return out


def load(directory: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return load_quantized(directory, load_tokenizer(str(directory)), dtype=dtype)


@pytest.fixture
def copy(gptq: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gptq, tmp_path / "copy"))


def test_a_gptq_directory_loads_as_the_very_classifier_that_it_stands_for(gptq: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(gptq.with_name("plain")).eval()
    model = load(gptq)
    plain.config.pad_token_id = model.config.pad_token_id
    inputs = {"input_ids": torch.randint(5, 1000, (4, 30)), "attention_mask": torch.ones(4, 30, dtype=torch.long)}
    inputs["attention_mask"][2, 20:] = 0
    inputs["input_ids"][2, 20:] = model.config.pad_token_id
    with torch.inference_mode():
        assert torch.allclose(model(**inputs).logits, plain(**inputs).logits, atol=1e-5)
    assert len(list(quantized_weights(model))) == 7


def test_logits_are_float32_whatever_the_body_computes_in(gptq: Path) -> None:
    model = load(gptq, torch.bfloat16)
    logits = model(input_ids=torch.randint(5, 1000, (1, 30))).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.0.mlp.up_proj.scales", "model.embed_tokens.weight"]
)
def test_weights_that_nobody_stored_are_not_made_up(copy: Path, name: str) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights[name]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack"):
        load(copy)


def test_a_quantized_directory_without_its_description_is_refused(copy: Path) -> None:
    (copy / QUANTIZATION_FILE).unlink()
    assert is_quantized(copy)
    with pytest.raises(InputError, match=r"quantization_config\.json: missing"):
        load(copy)


@pytest.mark.parametrize("text", ["", "{}", '{"method": "magic", "bits": 8, "head_sha256": "a"}'])
def test_a_broken_description_is_refused(copy: Path, text: str) -> None:
    (copy / QUANTIZATION_FILE).write_text(text)
    with pytest.raises(InputError, match="quantize the model again"):
        load(copy)


def test_a_head_of_another_shape_is_refused(copy: Path) -> None:
    head = {"score.weight": torch.randn(3, 7)}
    save_file(head, copy / "classifier_head.safetensors", {"format": "pt"})
    document = json.loads((copy / QUANTIZATION_FILE).read_text()) | {"head_sha256": head_sha256(head)}
    (copy / QUANTIZATION_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match="do not fit the model"):
        load(copy)


def test_damaged_weights_are_refused(copy: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load(copy)


def test_quantized_weights_are_not_quantized_while_loading(copy: Path) -> None:
    from arena_distill.data.prompts import TextFormat

    TextFormat.for_tokenizer(load_tokenizer(str(copy))).save(copy)
    with pytest.raises(SettingsError, match="has quantized weights already"):
        load_judge(copy, quant="int8")
    with pytest.raises(InputError, match=r"probe\.safetensors: missing"):
        load_judge(copy, max_length=64)


def test_asking_whether_a_directory_is_quantized_needs_no_torch(gptq: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from arena_distill.models.quantized import is_quantized\n"
        "print(is_quantized(Path(sys.argv[1])), is_quantized(Path(sys.argv[2])), is_quantized(Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, *map(str, (gptq, gptq.with_name("plain"), tmp_path))]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ["True", "False", "False"]
