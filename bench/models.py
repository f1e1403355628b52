"""Judges of random weights, as large and as slow as trained ones, whose verdicts differ from row to row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from texts import chat_rows, sample_texts

from arena_distill.data.prompts import TextFormat, texts_of
from arena_distill.models.classifier import load_tokenizer
from arena_distill.models.instructions import has_bfloat16_products
from arena_distill.models.quiet import quiet_libraries
from arena_distill.models.tiny import TinySize, make_tiny_model

CONTRAST = 4.0  # weights this many times BERT's initial ones: attention looks at something
LOGIT_SPREAD = 0.5  # standard deviation of the logits


def fastest_dtype() -> str:
    """What matrix products are fastest in on this CPU."""
    return "bfloat16" if has_bfloat16_products() else "float32"


def write_encoder(
    directory: Path, *, layers: int = 6, vocabulary: int = 30_522, positions: int = 512, seed: int = 1
) -> int:
    """A BERT of 384 dimensions and 12 heads with a text format; by default 22M parameters, as in MiniLM.

    Its tokenizer learns from the sample, and knows fewer tokens than the embedding has rows. A pair of texts comes out
    of it with the token types of our text format, so that peers see what we see.

    Returns:
        Number of parameters.
    """
    quiet_libraries()
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification

    make_tiny_model("bert", sample_texts(), directory, TinySize(layers=1), seed)
    tokenizer = load_tokenizer(str(directory))
    marks = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP]:1 $B:1 [SEP]:1", special_tokens=marks
    )
    tokenizer.model_max_length = positions
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=max(vocabulary, len(tokenizer)),
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=3,
    )
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config).eval()
    spread_logits(model, tokenizer)
    model.save_pretrained(directory)
    TextFormat.for_tokenizer(tokenizer, token_types=config.type_vocab_size).save(directory)
    return int(model.num_parameters())


@torch.no_grad()
def spread_logits(model: Any, tokenizer: Any) -> None:
    """Make a classifier's logits differ between rows, about none: else all agree, and equality shows nothing."""
    for name, weight in model.named_parameters():
        if ".layer." in name and weight.dim() == 2:
            weight.mul_(CONTRAST)
    prompts, a, b = (column.to_pylist() for column in texts_of(chat_rows(32, seed=1, median=300)))
    prompts_and_a = [f"{prompt} {tokenizer.sep_token} {answer}" for prompt, answer in zip(prompts, a, strict=True)]
    inputs = tokenizer(prompts_and_a, b, padding=True, truncation=True, max_length=512, return_tensors="pt")
    logits = model(**inputs).logits
    scale = LOGIT_SPREAD / logits.std(dim=0)
    model.classifier.weight.mul_(scale[:, None])
    model.classifier.bias.copy_((model.classifier.bias - logits.mean(dim=0)) * scale)
