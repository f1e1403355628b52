"""The memory estimate against what PyTorch really allocates, its monotony, and the choice of a model that fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arena_distill.models.architecture import KNOWN, LADDERS, LINEAR_MODULES, Architecture
from arena_distill.models.memory import GB, MemoryEstimate, TrainingShape, choose_base, estimate_memory
from arena_distill.runtime.errors import InputError, SettingsError

LLAMA_8B, GEMMA_9B = KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"], KNOWN["google/gemma-2-9b-it"]
SHAPE = TrainingShape(rows=2, max_length=1024)
SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 3000}
SMALL |= {"num_hidden_layers": 4, "intermediate_size": 896, "pad_token_id": 0}


def build(config: dict[str, Any], shape: TrainingShape) -> Any:
    """A random model ready to train in ``shape``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = torch.bfloat16 if shape.weight_bytes == 2 else torch.float32
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    if shape.lora_r:
        model = get_peft_model(model, LoraConfig(r=shape.lora_r, target_modules=list(shape.targets)))
    if shape.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def step(model: Any, shape: TrainingShape) -> None:
    """Forward and backward of one padded batch."""
    import torch

    ids = torch.randint(1, SMALL["vocab_size"], (shape.rows, shape.max_length))
    mask = torch.ones_like(ids)
    mask[0, : shape.max_length // 4] = 0
    if shape.full_vocabulary_logits:
        out = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False)
        out.loss.backward()
    else:
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits
        logits[:, -1, :3].float().logsumexp(-1).sum().backward()


def allocated_at_peak(model: Any, shape: TrainingShape) -> int:
    """Bytes of all tensors that live at once at the worst moment of a step, without the model's own."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Ledger(TorchDispatchMode):
        live = peak = 0

        def __init__(self, known: list[Any]) -> None:
            super().__init__()
            self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if hasattr(tensor, "untyped_storage") and tensor.untyped_storage() not in self.seen:
                    storage = tensor.untyped_storage()
                    self.seen.add(storage)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self.free, storage.nbytes())
            return out

        def free(self, size: int) -> None:
            self.live -= size

    with Ledger([*model.parameters(), *model.buffers()]) as ledger:
        step(model, shape)
    return ledger.peak


def predicted(config: dict[str, Any], shape: TrainingShape) -> int:
    estimate = estimate_memory(Architecture.from_config(config), shape)
    return estimate.activations + estimate.logits + estimate.gradients


@pytest.mark.parametrize("vocabulary_logits", [False, True], ids=["labels", "lm"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("weight_bytes", [2, 4], ids=["bf16", "fp32"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_lora_step_allocates_what_is_estimated(
    family: str, weight_bytes: int, checkpointing: bool, vocabulary_logits: bool
) -> None:
    config = SMALL | {"model_type": family}
    shape = TrainingShape(
        rows=2,
        max_length=192,
        weight_bytes=weight_bytes,
        gradient_checkpointing=checkpointing,
        full_vocabulary_logits=vocabulary_logits,
    )
    real = allocated_at_peak(build(config, shape), shape)
    assert real <= predicted(config, shape) <= 1.35 * real


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("o_proj", "down_proj")], ids=lambda names: "+".join(names))
def test_adapters_on_some_modules_allocate_what_is_estimated(targets: tuple[str, ...]) -> None:
    config = SMALL | {"model_type": "llama"}
    shape = TrainingShape(rows=2, max_length=192, targets=targets, gradient_checkpointing=False)
    real = allocated_at_peak(build(config, shape), shape)
    assert real <= predicted(config, shape) <= 1.35 * real


@pytest.mark.parametrize("max_length", [8, 192])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_full_fine_tuning_is_never_underestimated(family: str, checkpointing: bool, max_length: int) -> None:
    """Its gradients appear as activations go, so the sum of both lies above the peak, but for a few small vectors."""
    config = SMALL | {"model_type": family}
    shape = TrainingShape(rows=2, max_length=max_length, lora_r=0, gradient_checkpointing=checkpointing)
    real = allocated_at_peak(build(config, shape), shape)
    assert 0.995 * real <= predicted(config, shape) <= 2 * real


def test_weights_adapter_and_optimizer_are_those_of_the_real_model() -> None:
    import torch

    config = SMALL | {"model_type": "qwen2"}
    model = build(config, SHAPE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    estimate = estimate_memory(Architecture.from_config(config), SHAPE)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert estimate.weights == sum(parameter.nbytes for parameter in frozen)
    assert estimate.adapter == sum(parameter.nbytes for parameter in trained)

    optimizer = torch.optim.AdamW(trained)
    step(model, replace(SHAPE, max_length=8))
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert estimate.optimizer == sum(moment.nbytes for moment in moments)
    assert estimate.gradients == sum(parameter.grad.nbytes for parameter in trained)


def test_nf4_weights_are_as_large_as_bitsandbytes_makes_them() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SMALL | {"model_type": "qwen2"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    linears = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    size = sum(parameter.nbytes for parameter in model.parameters()) - sum(m.weight.nbytes for m in linears)
    for linear in linears:
        packed, state = bitsandbytes.functional.quantize_4bit(
            linear.weight.data, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        size += packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    estimate = estimate_memory(Architecture.from_config(config), replace(SHAPE, quant="nf4"))
    assert estimate.weights == pytest.approx(size, rel=1e-3)


MEASURED = """
import json, sys
from pathlib import Path
from arena_distill.models.memory import TrainingShape
from tests.models.test_memory import build, step

def resident(field):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field))

import torch
torch.set_num_threads(1)
shape = TrainingShape(**json.loads(sys.argv[2]))
model = build(json.loads(sys.argv[1]), shape)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
step(model, TrainingShape(rows=1, max_length=8, full_vocabulary_logits=True))  # libraries take their memory first
optimizer.zero_grad(set_to_none=True)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = resident("VmRSS")
step(model, shape)
optimizer.step()
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["keep", "recompute"])
def test_resident_memory_of_a_real_step_is_within_a_factor_of_two(checkpointing: bool) -> None:
    config = SMALL | {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    settings = {"rows": 4, "max_length": 512, "weight_bytes": 4, "gradient_checkpointing": checkpointing}
    settings |= {"full_vocabulary_logits": True, "on_gpu": False}
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(config), json.dumps(settings)],
        # Without this, glibc keeps freed blocks and the resident size says little about what is in use.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    estimate = estimate_memory(Architecture.from_config(config), TrainingShape(**settings))
    expected = estimate.gradients + estimate.optimizer + estimate.activations + estimate.logits
    measured = int(run.stdout.split()[-1])
    print(f"measured {measured / 1e6:.0f} MB, estimated {expected / 1e6:.0f} MB")
    assert expected > 200e6
    assert 0.5 <= measured / expected <= 2


BASES = [
    (LLAMA_8B, SHAPE),
    (LLAMA_8B, replace(SHAPE, quant="nf4", full_vocabulary_logits=True)),
    (LLAMA_8B, replace(SHAPE, lora_r=0)),
    (GEMMA_9B, replace(SHAPE, gradient_checkpointing=False, n_devices=4)),
    (GEMMA_9B, replace(SHAPE, lora_r=0, weight_bytes=4, n_devices=2)),
]


@pytest.mark.parametrize(("arch", "shape"), BASES, ids=range(len(BASES)))
def test_more_to_train_never_needs_less(arch: Architecture, shape: TrainingShape) -> None:
    larger = [replace(shape, rows=shape.rows + 1), replace(shape, max_length=shape.max_length + 64)]
    larger += [replace(shape, gradient_checkpointing=False), replace(shape, full_vocabulary_logits=True)]
    need = estimate_memory(arch, shape).total
    if shape.lora_r:
        larger += [replace(shape, lora_r=shape.lora_r * 2), replace(shape, quant="none")]
        assert estimate_memory(arch, replace(shape, targets=LINEAR_MODULES[:2])).total < need
    for more in larger:
        assert estimate_memory(arch, more).total >= need, more


def test_each_saving_saves() -> None:
    base = replace(SHAPE, gradient_checkpointing=False, full_vocabulary_logits=True)
    need = estimate_memory(LLAMA_8B, base).total
    savings: list[dict[str, Any]] = [{"quant": "nf4"}, {"gradient_checkpointing": True}, {"rows": 1}, {"n_devices": 8}]
    for saving in [*savings, {"full_vocabulary_logits": False}, {"on_gpu": False}]:
        assert estimate_memory(LLAMA_8B, replace(base, **saving)).total < need, saving


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, lora_r=0)], ids=["lora", "full"])
def test_sharding_divides_weights_gradients_and_optimizer(shape: TrainingShape) -> None:
    alone, shared = estimate_memory(LLAMA_8B, shape), estimate_memory(LLAMA_8B, replace(shape, n_devices=8))
    for part in ("weights", "adapter", "gradients", "optimizer"):
        assert getattr(shared, part) == -(-getattr(alone, part) // 8)
    assert (shared.activations, shared.logits) == (alone.activations, alone.logits)
    assert alone.gathered == 0 < shared.gathered < alone.weights


def test_the_table_is_aligned_and_adds_up() -> None:
    estimate = MemoryEstimate(int(16.06 * GB), 1, 2, 3, 0, int(104.4 * GB), 0, int(6.02 * GB))
    lines = str(estimate).splitlines()
    assert lines[1] == "weights" + " " * 21 + "16.06"
    assert lines[-1].split() == ["total", "126.48"]
    assert {len(line) for line in lines[1:]} == {33}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rows": 0}, {"max_length": 0}, {"lora_r": -1}, {"n_devices": 0}, {"targets": ("q_proj", "score")}),
        *({"quant": "int3"}, {"weight_bytes": 1}, {"quant": "nf4", "lora_r": 0}),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"must|no such|->"):
        replace(SHAPE, **wrong)


def test_what_fits_is_chosen_without_a_look_at_the_ladder() -> None:
    choice = choose_base("google/gemma-2-9b-it", ["nobody/unknown"], SHAPE, 80 * GB)
    assert choice.name == "google/gemma-2-9b-it" and list(choice.estimates) == [choice.name]
    assert "needs" in choice.reason and "80.0 GB are free" in choice.reason and "chose" not in choice.reason


def test_the_largest_smaller_model_that_fits_is_chosen() -> None:
    wanted, *smaller = LADDERS["llama"]
    room = estimate_memory(LLAMA_8B, SHAPE).total
    choice = choose_base(wanted, LADDERS["llama"], SHAPE, room)
    assert choice.name == smaller[0] and list(choice.estimates) == [wanted, smaller[0]]
    assert wanted in choice.reason and f"chose {smaller[0]}" in choice.reason
    below = choose_base(wanted, smaller[::-1], SHAPE, room - 1)
    assert below.name == smaller[1] and list(below.estimates) == [wanted, *smaller[:2]]


def test_the_wanted_model_need_not_be_on_the_ladder(backbones: Path) -> None:
    little = str(backbones / "llama")
    choice = choose_base("Qwen/Qwen2.5-7B", [little, "meta-llama/Meta-Llama-3-70B"], SHAPE, 3 * GB)
    assert choice.name == little and list(choice.estimates) == ["Qwen/Qwen2.5-7B", little]


def test_when_nothing_fits_the_error_says_what_would_help() -> None:
    with pytest.raises(SettingsError) as caught:
        choose_base(LADDERS["gemma"][0], LADDERS["gemma"], replace(SHAPE, full_vocabulary_logits=True), 4 * GB)
    message = str(caught.value)
    assert "the smallest choice, google/gemma-2-2b-it, needs" in message and "4.0 GB are free" in message
    for advice in ("batch of 1 row", "length of 512 tokens", "NF4 weights"):
        assert advice in message
    assert "gradient checkpointing" not in message, "it is on already"


def test_when_there_is_nothing_smaller_the_error_speaks_of_the_wanted_model_alone() -> None:
    with pytest.raises(SettingsError, match=r"needs [\d.]+ GB and 4\.0 GB are free -> try") as caught:
        choose_base("google/gemma-2-2b-it", LADDERS["llama"][:2], SHAPE, 4 * GB)
    assert "smallest choice" not in str(caught.value)


def test_an_unknown_model_on_the_ladder_is_named() -> None:
    with pytest.raises(InputError, match="fall back to: nobody/unknown"):
        choose_base("google/gemma-2-27b-it", ["nobody/unknown"], SHAPE, 1 * GB)
