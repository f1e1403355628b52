"""Small adapters with random factors, what PEFT makes of them, and bases saved in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

ATTENTION = ["q_proj", "v_proj"]


def make_adapter(base: Path, directory: Path, head: bool = False, dtype: str = "", **options: Any) -> Path:
    """An adapter on ``base`` with random factors and, if asked for, a random new head."""
    torch.manual_seed(7)
    model = get_peft_model(load_base(base, head), LoraConfig(**{"r": 4, "lora_alpha": 8, **options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    if dtype:
        model.to(getattr(torch, dtype))
    model.save_pretrained(directory)
    return directory


def load_base(base: Path, head: bool) -> Any:
    if head:
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    return AutoModelForCausalLM.from_pretrained(base)


def merged_by_peft(base: Path, adapter: Path, head: bool = False) -> dict[str, torch.Tensor]:
    merged = PeftModel.from_pretrained(load_base(base, head), str(adapter)).merge_and_unload()
    return dict(merged.state_dict())


def load_whole(directory: Path, head: bool = False) -> Any:
    """The model of ``directory``, which must hold all of it and nothing else."""
    auto = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    model, report = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def resaved(base: Path, directory: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Path:
    """``base`` saved again: in another type, in many files, or as another class."""
    save = {key: options.pop(key) for key in ("max_shard_size",) if key in options}
    auto.from_pretrained(base, **options).save_pretrained(directory, **save)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory
