"""Classifiers that compute no padding: a batch's sequences stand one after the other, and each attends to itself alone.

Norms, projections and feed-forward layers see real tokens only, attention sees each sequence for itself. That holds in
training and inference, on any device, with adapters and quantized weights, for the families of ``FAMILIES``; other
models stay as they are. A model is still called with padded ids and their mask, and weights and files are as before.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import pad

from arena_distill.models.attention_within import Bounds, attend_within

FAMILIES = frozenset(
    ("bert", "distilbert", "roberta", "xlm-roberta", "llama", "mistral", "qwen2", "qwen3", "gemma2"),
)
"""``model_type`` of the architectures whose attention can be replaced, and whose head we know."""

_ATTENTION = "arena_unpadded"  # has no mask function: transformers then makes no mask


def without_padding(model: Any) -> bool:
    """Have a classifier compute real tokens only from now on.

    Args:
        model: of ``AutoModelForSequenceClassification``, with adapters or without. It is called as before, with
            ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, ``[batch, length]``, padded on the right;
            of what it returns only the logits are there.

    Returns:
        Whether it is of a family that can do so; if not, it is unchanged.
    """
    from transformers import AttentionInterface

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.config.model_type not in FAMILIES:
        return False
    AttentionInterface.register(_ATTENTION, attend_within)
    inner.set_attn_implementation(_ATTENTION)
    inner.forward = MethodType(_forward, inner)
    return True


def _forward(
    self: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
    ends = mask.sum(dim=1).cumsum(0)
    edges = pad(ends, (1, 0))
    positions = torch.arange(input_ids.shape[1], device=mask.device) + _first_position(self)
    inputs: dict[str, Any] = {"input_ids": input_ids[mask][None], "position_ids": positions.expand_as(mask)[mask][None]}
    if token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids[mask][None]
    decoder = hasattr(self, "score")
    if decoder:
        inputs["use_cache"] = False
    states = self.base_model(**inputs, bounds=Bounds(edges.tolist())).last_hidden_state[0]
    row_states = states[(ends - 1 if decoder else edges[:-1]).to(states.device)]
    return SequenceClassifierOutput(logits=self.score(row_states) if decoder else _encoder_head(self, row_states))


def _encoder_head(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, 3]`` of the first tokens' states ``[B, H]``."""
    family = model.config.model_type
    if family == "bert":
        return model.classifier(model.dropout(model.bert.pooler(states[:, None])))
    if family == "distilbert":
        return model.classifier(model.dropout(torch.relu(model.pre_classifier(states))))
    return model.classifier(states[:, None])  # RoBERTa's takes the first token itself


def _first_position(model: Any) -> int:
    """Of a sequence; RoBERTa's first positions are taken by the padding token."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1
