"""A model about to be trained: its base, its head, its adapter, and how rows become its input."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from arena_distill.data.prompts import TextFormat
from arena_distill.models.adapters import add_lora, nf4_config
from arena_distill.models.classifier import (
    HEAD_MODULES,
    check_vocabulary,
    hub_errors,
    load_classifier,
    load_tokenizer,
    token_types,
)
from arena_distill.models.dropout import quicken_dropout
from arena_distill.models.label_tokens import LabelTokens, load_label_token_classifier
from arena_distill.models.unpadded import without_padding
from arena_distill.runtime.errors import InputError
from arena_distill.training.processes import local_rank, process_count, say


@dataclass(frozen=True)
class Recipe:
    """What to put on a base model."""

    head: Literal["label", "seq_cls", "lm"]  # label tokens, a new classification head, or the whole output head
    label_words: tuple[str, ...]
    lora_r: int  # 0: train every weight
    lora_alpha: int
    lora_dropout: float
    quant: Literal["auto", "nf4", "none"]
    bf16: bool

    @property
    def base_bits(self) -> Literal["nf4", "none"]:
        """Whether the base is loaded in 4 bits; ``auto`` does so for LoRA on a GPU."""
        if self.quant != "auto":
            return self.quant
        return "nf4" if self.lora_r and torch.cuda.is_available() else "none"

    @property
    def can_be_sharded(self) -> bool:
        """Whether FSDP may divide the weights: on several GPUs, and not in 4 bits, of which every GPU gets a copy."""
        return process_count() > 1 and torch.cuda.is_available() and self.base_bits == "none"


@dataclass(frozen=True)
class JudgeModel:
    """The model, ready for the Trainer."""

    model: Any
    tokenizer: Any
    layout: TextFormat
    labels: LabelTokens | None
    fresh_head: bool = False


def make_model(
    base: str, tokenizer_name: str, recipe: Recipe, fsdp: bool = False, fast_tokenizer: bool = True
) -> JudgeModel:
    """Load ``base`` as ``recipe`` says; LoRA factors and a new head are fresh.

    Args:
        base: hub name or directory.
        tokenizer_name: likewise.
        recipe: head, adapter and precision.
        fsdp: whether several GPUs will share the weights, so that one process at a time need hold them all.
        fast_tokenizer: the Rust one, where the model has one.

    Raises:
        InputError: base or tokenizer cannot be used for this.
    """
    if fsdp and recipe.can_be_sharded:
        _load_once_for_all()
    tokenizer = load_tokenizer(tokenizer_name, fast_tokenizer)
    options = _loading_options(recipe)
    labels, fresh = None, frozenset[str]()
    if recipe.head == "label":
        labels = LabelTokens.of_tokenizer(tokenizer, recipe.label_words)
        model = load_label_token_classifier(base, tokenizer, labels, **options)
        layout = TextFormat.for_label_tokens(tokenizer, labels.words)
    elif recipe.head == "seq_cls":
        model, fresh = load_classifier(base, tokenizer, **options)
        layout = TextFormat.for_tokenizer(tokenizer, token_types(model))
        if lost := sorted(name for name in fresh if not set(name.split(".")) & set(HEAD_MODULES)):
            raise InputError(f"{base}: lacks weights ({', '.join(lost[:3])} …) -> copy or download the model again")
        if fresh:
            say("the classification head is new (the base has none with three labels)")
    else:
        with hub_errors(base):
            model = AutoModelForCausalLM.from_pretrained(base, **options)
        check_vocabulary(model, tokenizer, base)
        layout = TextFormat.for_tokenizer(tokenizer)
    if recipe.lora_r:
        model = add_lora(
            model,
            base=base,
            r=recipe.lora_r,
            alpha=recipe.lora_alpha,
            dropout=recipe.lora_dropout,
            train_head=recipe.head == "seq_cls",
        )
    if recipe.head != "lm":
        without_padding(model)
    quicken_dropout(model)
    model.config.use_cache = False
    trainable, total = sum(p.numel() for p in model.parameters() if p.requires_grad), model.num_parameters()
    bits = "4 bits (NF4)" if recipe.base_bits == "nf4" else str(options["dtype"]).removeprefix("torch.")
    say(f"{base}: {total:,} parameters, {trainable:,} of them train; base weights in {bits}")
    return JudgeModel(model, tokenizer, layout, labels, bool(fresh))


def _loading_options(recipe: Recipe) -> dict[str, Any]:
    half = torch.bfloat16 if recipe.bf16 else torch.float32
    options: dict[str, Any] = {"dtype": half if recipe.lora_r else torch.float32}  # what trains needs all its bits
    if recipe.base_bits == "nf4":
        options["quantization_config"] = nf4_config(half)
        options["device_map"] = {"": local_rank() if torch.cuda.is_available() else "cpu"}
    return options


def _load_once_for_all() -> None:
    """Let transformers read the weights in the main process alone; FSDP hands them out."""
    from accelerate import PartialState
    from accelerate.utils import enable_fsdp_ram_efficient_loading

    os.environ["ACCELERATE_USE_FSDP"] = "true"
    enable_fsdp_ram_efficient_loading()
    PartialState()
