"""An average of adapters is what PEFT would make of the mean of all merged models, in numbers and in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from arena_distill.models import merged_tensors
from arena_distill.models.average import average_error, relative_distance, require_alike, write_average
from arena_distill.models.lora_file import LoraAdapter, read_adapter
from arena_distill.runtime.errors import InputError
from tests.models.merge_cases import ATTENTION, load_base, make_adapter, merged_by_peft

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LLAMA_HEAD: dict[str, Any] = {"head": True, "target_modules": "all-linear", "modules_to_save": ["score"]}
BERT_HEAD: dict[str, Any] = {
    "head": True,
    "target_modules": ["query", "value", "dense"],
    "exclude_modules": r".*pooler.*",
    "modules_to_save": ["pooler", "classifier"],
}
PATTERNS = {"rank_pattern": {"q_proj": 2, "mlp.up_proj": 6}, "alpha_pattern": {r".*\.v_proj": 3, "up_proj": 5}}


def adapters_of(base: Path, root: Path, count: int = 3, dtype: str = "", **options: Any) -> list[Path]:
    """So many adapters of one base that began alike and went different ways."""
    made = [make_adapter(base, root / f"adapter_{k}", dtype=dtype, **options) for k in range(count)]
    for k, directory in enumerate(made):
        generator = torch.Generator().manual_seed(k)
        tensors = load_file(directory / WEIGHTS)
        for tensor in tensors.values():
            tensor += (0.05 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    return made


def averaged(adapters: Sequence[Path], into: Path, method: Any = "exact", rank: int = 0) -> Path:
    into.mkdir()
    write_average([read_adapter(directory) for directory in adapters], into, method, rank)
    return into


def read(directories: Sequence[Path]) -> list[LoraAdapter]:
    return [read_adapter(directory) for directory in directories]


def dense(directory: Path) -> dict[str, torch.Tensor]:
    """Every module's weight change, float64."""
    pairs = read_adapter(directory).pairs
    tensors = {name: tensor.double() for name, tensor in load_file(directory / WEIGHTS).items()}
    return {name: pair.scaling * tensors[pair.b.name] @ tensors[pair.a.name] for name, pair in pairs.items()}


def mean_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0)


# --- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", LLAMA_HEAD),
        ("llama", LLAMA_HEAD | {"use_rslora": True}),
        ("llama", LLAMA_HEAD | PATTERNS),
        ("llama", LLAMA_HEAD | PATTERNS | {"use_rslora": True}),
        ("gemma2", LLAMA_HEAD),
        ("bert", BERT_HEAD),
        ("deberta-v2", {**BERT_HEAD, "target_modules": ["query_proj", "value_proj"]}),
        ("llama", {"target_modules": ["embed_tokens", "up_proj"]}),
    ],
)
def test_exact_is_the_mean_of_the_models_that_peft_merges(
    family: str, options: dict[str, Any], backbones: Path, tmp_path: Path
) -> None:
    base, head = backbones / family, bool(options.get("head"))
    adapters = adapters_of(base, tmp_path, **options)
    average = merged_by_peft(base, averaged(adapters, tmp_path / "out"), head)
    models = [merged_by_peft(base, adapter, head) for adapter in adapters]
    assert any(not torch.equal(models[0][name], models[1][name]) for name in average)
    for name, tensor in average.items():
        expected = mean_of([model[name] for model in models])
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_exact_holds_where_weights_are_stored_transposed(tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=16)).save_pretrained(base)
    adapters = adapters_of(base, tmp_path, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    out = averaged(adapters, tmp_path / "out")
    average, models = merged_by_peft(base, out), [merged_by_peft(base, adapter) for adapter in adapters]
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.double(), mean_of([m[name] for m in models]), rtol=1e-6, atol=1e-7)
    assert average_error(read_adapter(out), read(adapters), "exact").largest_entry < 1e-6


def test_exact_keeps_every_factor_to_the_last_bit(backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD)
    found = load_file(averaged(adapters, tmp_path / "out") / WEIGHTS)
    parts = [load_file(adapter / WEIGHTS) for adapter in adapters]
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        if "lora_" in name:
            assert torch.equal(tensor, torch.cat([part[name] for part in parts], dim=1 if "lora_B" in name else 0))


def test_the_average_of_one_adapter_is_that_adapter(backbones: Path, tmp_path: Path) -> None:
    (adapter,) = adapters_of(backbones / "llama", tmp_path, count=1, **LLAMA_HEAD)
    for method in ("exact", "mean"):
        out = averaged([adapter], tmp_path / method, method)
        one, two = load_file(adapter / WEIGHTS), load_file(out / WEIGHTS)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_configuration_says_no_more_than_it_must_and_names_the_same_base(backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, use_rslora=True, **LLAMA_HEAD)
    before = json.loads((adapters[0] / CONFIG).read_text())
    config = json.loads((averaged(adapters, tmp_path / "out") / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (12, 16, False)  # 8 * sqrt(4)
    assert config["rank_pattern"] == {} == config["alpha_pattern"]
    assert config["base_model_name_or_path"] == before["base_model_name_or_path"]
    assert isinstance(LoraConfig.from_pretrained(str(tmp_path / "out")).lora_alpha, int)


def test_a_module_with_a_rank_of_its_own_has_one_in_the_average_too(tmp_path: Path, backbones: Path) -> None:
    options = {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "target_modules": ATTENTION}
    adapters = adapters_of(backbones / "llama", tmp_path, **options)
    out = averaged(adapters, tmp_path / "out")
    model = PeftModel.from_pretrained(load_base(backbones / "llama", False), str(out))
    shapes = {n.split(".")[-4]: p.shape[0] for n, p in model.named_parameters() if "lora_A" in n}
    assert sorted(shapes.values()) == [6, 12]
    found, parts = dense(out), [dense(adapter) for adapter in adapters]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, mean_of([part[name] for part in parts]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_stored_in_16_bits_are_averaged_without_another_rounding(
    dtype: str, backbones: Path, tmp_path: Path
) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, dtype=dtype, **LLAMA_HEAD)
    out = averaged(adapters, tmp_path / "out")
    found, parts = dense(out), [dense(adapter) for adapter in adapters]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, mean_of([part[name] for part in parts]), rtol=1e-12, atol=1e-14)


# --- rank ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_cut_back_to_a_rank_it_is_the_nearest_matrix_of_that_rank(rank: int, backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD)
    whole, cut = dense(averaged(adapters, tmp_path / "whole")), averaged(adapters, tmp_path / "cut", rank=rank)
    worst = 0.0
    for name, tensor in dense(cut).items():
        left_out = torch.linalg.svdvals(whole[name])[rank:]
        found = torch.linalg.norm(whole[name] - tensor)
        torch.testing.assert_close(found, torch.linalg.norm(left_out), rtol=1e-5, atol=1e-6)
        worst = max(worst, float(found / torch.linalg.norm(whole[name])))
    assert worst > 0.01, "nothing was cut off: the test would prove nothing"
    assert average_error(read_adapter(cut), read(adapters), "exact").frobenius == pytest.approx(worst, rel=1e-4)
    assert json.loads((cut / CONFIG).read_text())["r"] == rank


def test_a_rank_beyond_what_there_is_loses_nothing_and_stays_within_the_weights(
    backbones: Path, tmp_path: Path
) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD | {"r": 24})  # 72 together, weights are 32 wide
    out = averaged(adapters, tmp_path / "out", rank=500)
    assert {tensor.shape[0] for name, tensor in load_file(out / WEIGHTS).items() if "lora_A" in name} <= {16, 32}
    error = average_error(read_adapter(out), read(adapters), "exact")
    assert max(error.frobenius, error.largest_entry) < 1e-5
    PeftModel.from_pretrained(load_base(backbones / "llama", True), str(out))


# --- mean, heads ---------------------------------------------------------------------------------------------------


def test_mean_is_the_mean_of_each_factor_and_another_model_than_exact(backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD | PATTERNS)
    out = averaged(adapters, tmp_path / "out", "mean")
    found, parts = load_file(out / WEIGHTS), [load_file(adapter / WEIGHTS) for adapter in adapters]
    for name, tensor in found.items():
        assert torch.equal(tensor, mean_of([part[name] for part in parts]).float()), name
    scalings = [{name: pair.scaling for name, pair in read_adapter(d).pairs.items()} for d in (out, adapters[0])]
    assert scalings[0] == pytest.approx(scalings[1])
    assert average_error(read_adapter(out), read(adapters), "mean").largest_entry < 1e-6
    assert average_error(read_adapter(out), read(adapters), "exact").frobenius > 0.1


@pytest.mark.parametrize("method", ["exact", "mean"])
@pytest.mark.parametrize(("family", "options"), [("llama", LLAMA_HEAD), ("bert", BERT_HEAD)])
def test_everything_that_was_trained_whole_is_averaged_in_float32(
    family: str, options: dict[str, Any], method: str, backbones: Path, tmp_path: Path
) -> None:
    adapters = adapters_of(backbones / family, tmp_path, **options)
    found = load_file(averaged(adapters, tmp_path / "out", method) / WEIGHTS)
    parts = [load_file(adapter / WEIGHTS) for adapter in adapters]
    heads = [name for name in found if "lora_" not in name]
    assert len(heads) == {"llama": 1, "bert": 4}[family]
    for name in heads:
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], mean_of([part[name] for part in parts]).float())


def test_the_size_of_the_blocks_does_not_matter(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, target_modules=["embed_tokens", "up_proj"])
    whole = averaged(adapters, tmp_path / "whole")
    error = average_error(read_adapter(whole), read(adapters), "exact")
    monkeypatch.setattr(merged_tensors, "BLOCK_ELEMENTS", 7 * 32)
    assert (averaged(adapters, tmp_path / "out") / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert average_error(read_adapter(whole), read(adapters), "exact").frobenius == pytest.approx(error.frobenius, 0.1)


# --- distance and error ----------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_dense_weight_changes(backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD | PATTERNS)
    exact, mean = (averaged(adapters, tmp_path / method, method) for method in ("exact", "mean"))
    one, two = dense(exact), dense(mean)
    parts = {name: float(torch.linalg.norm(one[name] - two[name]) / torch.linalg.norm(one[name])) for name in one}
    found = relative_distance(read_adapter(exact), read_adapter(mean))
    assert found.module == max(parts, key=parts.__getitem__)
    assert found.largest == pytest.approx(parts[found.module], rel=1e-9)
    total = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert found.overall == pytest.approx((total / sum(float(t.square().sum()) for t in one.values())) ** 0.5, rel=1e-9)


def test_the_distance_of_two_adapters_a_rounding_apart_is_still_right(backbones: Path, tmp_path: Path) -> None:
    (adapter,) = adapters_of(backbones / "llama", tmp_path, count=1, target_modules=ATTENTION)
    near = averaged([adapter], tmp_path / "near")
    assert relative_distance(read_adapter(adapter), read_adapter(near)).overall < 1e-14
    tensors = load_file(near / WEIGHTS)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 0] = torch.nextafter(tensors[name][0, 0], torch.tensor(torch.inf))
    save_file(tensors, near / WEIGHTS, {"format": "pt"})
    found = relative_distance(read_adapter(adapter), read_adapter(near))
    one, two = dense(adapter), dense(near)
    expected = float(torch.linalg.norm(one[found.module] - two[found.module]) / torch.linalg.norm(one[found.module]))
    assert 1e-11 < found.largest < 1e-6 and found.largest == pytest.approx(expected, rel=1e-4)


def test_untrained_adapters_have_no_distance_and_no_error(backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, target_modules=ATTENTION)
    for adapter in adapters:
        change(adapter, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])
    exact, mean = (averaged(adapters, tmp_path / method, method) for method in ("exact", "mean"))
    assert relative_distance(read_adapter(exact), read_adapter(mean)).overall == 0
    assert average_error(read_adapter(exact), read(adapters), "exact").frobenius == 0


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "score"])
def test_the_error_finds_one_number_that_is_wrong_by_a_thousandth(part: str, backbones: Path, tmp_path: Path) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD)
    out = averaged(adapters, tmp_path / "out")
    right = average_error(read_adapter(out), read(adapters), "exact")
    assert max(right.frobenius, right.largest_entry) < 1e-6

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensor = next(tensor for name, tensor in tensors.items() if part in name)
        place = tensor.abs().argmax()
        tensor.view(-1)[place] *= 1.001

    change(out, spoil)
    wrong = average_error(read_adapter(out), read(adapters), "exact")
    assert max(wrong.frobenius, wrong.largest_entry) > 1e-5


# --- refusals --------------------------------------------------------------------------------------------------------


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"r": 8}, "adapter_config.json: r 8, another than"),
    "alpha": ({"lora_alpha": 4}, "lora_alpha 4, another than"),
    "modules": ({"target_modules": ATTENTION}, "target_modules .'q_proj', 'v_proj'., another than"),
    "scaling": ({"use_rslora": True}, "use_rslora True, another than"),
    "pattern": ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern .'q_proj': 3., another than"),
    "head": ({"modules_to_save": ["score", "norm"]}, "modules_to_save .'norm', 'score'., another than"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_adapters_that_differ_are_refused_by_file(case: str, backbones: Path, tmp_path: Path) -> None:
    base, (options, message) = backbones / "llama", DIFFERENT[case]
    first, second = adapters_of(base, tmp_path, count=2, **LLAMA_HEAD)
    other = make_adapter(base, tmp_path / "other", **LLAMA_HEAD | options)
    require_alike(read([first, second]))
    with pytest.raises(InputError, match=message) as raised:
        require_alike(read([first, second, other]))
    assert str(raised.value).startswith(str(other)) and str(first) in str(raised.value)
    assert " -> train all folds with the same base" in str(raised.value)


def test_adapters_of_bases_of_another_width_are_refused(backbones: Path, tmp_path: Path) -> None:
    (first,) = adapters_of(backbones / "llama", tmp_path, count=1, **LLAMA_HEAD)
    other = make_adapter(backbones / "qwen2", tmp_path / "other", **LLAMA_HEAD)
    change(other, lambda t: t.update({n: v[:, :16].clone() for n, v in t.items() if "q_proj.lora_A" in n}))
    with pytest.raises(InputError, match=r"q_proj\.lora_A\.weight: has \[4, 16\], another than in .*\[4, 32\]"):
        require_alike(read([first, other]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["lora_A", "lora_B", "score"])
@pytest.mark.parametrize("method", ["exact", "mean"])
def test_a_number_that_is_none_is_refused_by_file_and_tensor(
    method: str, part: str, value: float, backbones: Path, tmp_path: Path
) -> None:
    adapters = adapters_of(backbones / "llama", tmp_path, **LLAMA_HEAD)
    named = next(name for name in load_file(adapters[1] / WEIGHTS) if part in name)
    change(adapters[1], lambda tensors: tensors[named].view(-1)[3:4].fill_(value))
    with pytest.raises(InputError) as raised:
        averaged(adapters, tmp_path / "out", method)
    assert str(raised.value).startswith(f"{adapters[1] / WEIGHTS}: {named} holds NaN or infinity")
