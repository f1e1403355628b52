"""Attention of each sequence of a batch to itself, where sequences stand one after the other without padding.

On a CUDA GPU in 16 bits it is one call of FlashAttention's variable-length kernel, where a trial shows that this works.
On a CPU in 16 bits it is matrix products and softmax by blocks that fit the cache: torch's fused attention takes two to
four times as long there, and its softmax twice as long as an exponential and a sum, which do where scores are small.
Otherwise it is torch's fused attention, one call a sequence; with a soft cap (Gemma-2), which that cannot do, and with
dropout on a CPU, which it does slowly, the parts one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from arena_distill.models.dropout import dropout_factors

_CACHED_SCORES = 2_000_000  # attention scores that are made at once
_hidden: dict[tuple[Any, ...], torch.Tensor] = {}  # by kind of attention, the largest that was needed
_ROWS = 128  # tokens that are looked at together, where they do not see all others
_SMALL_SCORE = 60  # the sum of as many exponentials as there are tokens is still a number: no maximum to be subtracted
_VECTOR = 32  # scores that softmax takes at once in 16 bits; the rest of a row, one by one, would take as long again


def _whole_vectors(count: int) -> int:
    return -(-count // _VECTOR) * _VECTOR


def _padded(sequence: torch.Tensor) -> torch.Tensor:
    """``[heads, L, D]`` with zeros up to whole vectors of tokens."""
    return pad(sequence, (0, 0, 0, _whole_vectors(sequence.shape[1]) - sequence.shape[1])).contiguous()


class Bounds:
    """Where each of B sequences begins and ends among the tokens of a batch.

    Args:
        edges: B + 1 of them.
    """

    def __init__(self, edges: list[int]) -> None:
        self.edges = edges
        self.longest = max(end - start for start, end in self.pairs)
        self._on_device: torch.Tensor | None = None

    def on(self, device: torch.device) -> torch.Tensor:
        """The edges as kernels want them, int32; copied once a batch and device."""
        if self._on_device is None or self._on_device.device != device:
            self._on_device = torch.tensor(self.edges, dtype=torch.int32, device=device)
        return self._on_device

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Start and end of each sequence."""
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))


@dataclass(frozen=True)
class Sight:
    """Which tokens a token sees, and how scores are made."""

    causal: bool
    window: int | None  # tokens, itself included
    scale: float
    softcap: float | None

    def is_partial(self, length: int) -> bool:
        """Whether a token of a sequence does not see all that causality leaves it."""
        return self.window is not None and self.window < length

    def hides(self, length: int) -> bool:
        """Whether a token of a sequence does not see all of it."""
        return self.causal or self.is_partial(length)

    def columns(self, rows: range, length: int) -> range:
        """Which tokens of a sequence any token of ``rows`` sees, and some more for whole vectors."""
        behind = 0 if self.window is None else max(0, rows.start - self.window + 1)
        ahead = length if self.window is None else min(length, rows.stop + self.window - 1)
        return range(behind // _VECTOR * _VECTOR, _whole_vectors(rows.stop if self.causal else ahead))

    def visible(self, rows: range, columns: range, device: torch.device) -> torch.Tensor:
        """Which of the tokens ``columns`` each token of ``rows`` sees, ``[rows, columns]``."""
        back = torch.arange(rows.start, rows.stop, device=device)[:, None]
        back = back - torch.arange(columns.start, columns.stop, device=device)
        seen = back >= 0 if self.causal else torch.ones_like(back, dtype=torch.bool)
        return seen if self.window is None else seen & (back.abs() < self.window)

    def hidden(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """What is added to the scores of a sequence, ``[length, length]`` or more of it: -inf where nothing is seen."""
        kind = self.causal, self.window, like.dtype, like.device
        found = _hidden.get(kind)
        if found is None or len(found) < length:
            tokens = range(length)
            hidden = ~self.visible(tokens, tokens, like.device)
            found = _hidden[kind] = like.new_zeros(length, length).masked_fill_(hidden, float("-inf"))
        return found


def attend_within(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bounds: Bounds,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each sequence of a batch to itself, as transformers calls attention functions.

    Args:
        module: the layer; says whether tokens see those after them.
        query: ``[1, heads, T, D]``, T tokens of all sequences.
        key: ``[1, key heads, T, D]``.
        value: likewise.
        attention_mask: none.
        bounds: where the sequences are.
        dropout: of the weights.
        scaling: of the scores; by default one by the root of D.
        sliding_window: how many tokens a token sees, itself included; None: all.
        softcap: bound that scores are bent to (Gemma-2); None: none.
        options: what other attention functions need.

    Returns:
        ``[1, T, heads, D]``, and no weights.
    """
    if query.dtype != value.dtype:  # under autocast: rotary positions made 32 bits of query and key
        query, key = query.to(value.dtype), key.to(value.dtype)
    causal = bool(getattr(module, "is_causal", False))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    see = Sight(causal, sliding_window, scale, softcap)
    if not dropout and softcap is None and has_variable_length_kernel(query, key, see):
        return variable_length(query[0], key[0], value[0], bounds, see)[None], None
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if not needs_gradient and (softcap is not None or _is_half_on_cpu(query)):
        return _attend_in_blocks(query[0], key[0], value[0], bounds, see)[None].transpose(1, 2), None
    return _one_by_one(query[0], key[0], value[0], bounds, see, dropout)[None], None


def variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds, see: Sight
) -> torch.Tensor:
    """All sequences in one call of torch's FlashAttention, ``[heads, T, D]`` to ``[T, heads, D]``."""
    from torch.nn.attention.varlen import varlen_attn

    edges = bounds.on(query.device)
    behind = -1 if see.window is None else see.window - 1
    out: Any = varlen_attn(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        edges,
        edges,
        bounds.longest,
        bounds.longest,
        scale=see.scale,
        window_size=(behind, 0 if see.causal else behind),
        enable_gqa=len(query) != len(key),
    )
    return torch.as_tensor(out)


def has_variable_length_kernel(query: torch.Tensor, key: torch.Tensor, see: Sight) -> bool:
    """Whether this machine's GPU has a kernel for it, which a small trial confirms once for each kind of attention."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return _trial(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[-1], see.causal, see.window)


@cache
def _trial(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    key_heads: int,
    dimensions: int,
    causal: bool,
    window: int | None,
) -> bool:
    """Compare outputs and gradients of three short sequences with those of one call a sequence."""
    bounds = Bounds([0, 5, 70, 71])
    see = Sight(causal, None if window is None else min(window, 33), dimensions**-0.5, None)
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, bounds.edges[-1], dimensions) for count in (heads, key_heads, key_heads, heads)]
    found = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        *parts, upstream = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        for way in (variable_length, _one_by_one):
            q, k, v = leaves = [part.clone().requires_grad_() for part in parts]
            try:
                out = way(q, k, v, bounds, see)
                out.backward(upstream.transpose(0, 1))
            except (RuntimeError, ImportError, NotImplementedError, ValueError, TypeError) as error:
                print(f"note: attention goes one sequence at a time on this GPU ({' '.join(str(error).split())[:120]})")
                return False
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    if not all(torch.allclose(one, two, atol=5e-2, rtol=5e-2) for one, two in zip(*found, strict=True)):
        print("note: attention goes one sequence at a time: this GPU's variable-length kernel gives other results")
        return False
    return True


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds, see: Sight, dropout: float = 0.0
) -> torch.Tensor:
    """Every sequence by itself, with gradients; ``[heads, T, D]`` to ``[T, heads, D]``."""
    if see.softcap is not None or _is_half_on_cpu(query) or (dropout and query.device.type == "cpu"):
        mixed: torch.Tensor = _PartByPart.apply(query, key, value, bounds, see, dropout)
        return mixed.transpose(0, 1)
    if len(key) < len(query):
        key, value = (tensor.repeat_interleave(len(query) // len(key), dim=0) for tensor in (key, value))
    lengths = [end - start for start, end in bounds.pairs]
    outputs = []
    for q, k, v in zip(*(tensor[None].split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        tokens = range(q.shape[2])
        partial = see.is_partial(len(tokens))
        mask = see.visible(tokens, tokens, q.device) if partial else None
        causal = see.causal and not partial
        outputs.append(scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=see.scale))
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


class _PartByPart(torch.autograd.Function):
    """Scores, softmax and mixture of every sequence by itself, with gradients.

    One operation for all: each sequence's gradients are written where they belong. As operations of their own, each
    part cut out of a batch would have a gradient as large as the batch, and all of those would be added up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: Bounds,
        see: Sight,
        dropout: float,
    ) -> torch.Tensor:
        """``[heads, T, D]``, key and value with fewer heads perhaps; kept for the gradient are weights ``[L, L]``."""
        grouped = (query * see.scale).unflatten(0, (len(key), -1))  # [key heads, group, T, D]
        out = torch.empty_like(grouped)
        kept: list[torch.Tensor | None] = []
        hidden = see.hidden(_whole_vectors(bounds.longest), query) if see.hides(bounds.longest) else None
        with torch.autocast(query.device.type, enabled=False):
            for start, end in bounds.pairs:
                length = end - start
                q = grouped[:, :, start:end].flatten(1, 2)
                k, v = _padded(key[:, start:end]), _padded(value[:, start:end])
                weights = torch.bmm(q, k.transpose(1, 2))  # scores, until there are no others
                bent = None
                if see.softcap is not None:
                    bent = weights.div_(see.softcap).tanh_()
                    weights = bent * see.softcap
                if hidden is not None:
                    weights.unflatten(1, (-1, length)).add_(hidden[:length, : weights.shape[2]])
                weights[:, :, length:] = float("-inf")
                weights = weights.softmax(dim=-1)
                drop = dropout_factors(weights, dropout) if dropout else None
                mixed = torch.bmm(weights if drop is None else weights * drop, v)
                out[:, :, start:end] = mixed.unflatten(1, (-1, length))
                kept += [k, v, weights, bent, drop]
        ctx.save_for_backward(grouped, *kept)
        ctx.bounds, ctx.see = bounds, see
        return out.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of query, key and value."""
        grouped, *kept = ctx.saved_tensors
        gradient = gradient.unflatten(0, grouped.shape[:2])
        of_grouped = torch.empty_like(grouped)
        of_key, of_value = (torch.empty_like(grouped[:, 0]) for _ in range(2))
        with torch.autocast(grouped.device.type, enabled=False):
            for (start, end), k, v, weights, bent, drop in zip(
                ctx.bounds.pairs, *(kept[part::5] for part in range(5)), strict=True
            ):
                length = end - start
                q, g = (tensor[:, :, start:end].flatten(1, 2) for tensor in (grouped, gradient))
                seen = weights if drop is None else weights * drop
                of_value[:, start:end] = torch.bmm(seen.transpose(1, 2), g)[:, :length]
                of_scores = torch.bmm(g, v.transpose(1, 2))
                if drop is not None:
                    of_scores.mul_(drop)
                of_scores = torch.ops.aten._softmax_backward_data(of_scores, weights, -1, weights.dtype)
                if bent is not None:
                    of_scores = torch.ops.aten.tanh_backward(of_scores, bent)
                of_grouped[:, :, start:end] = torch.bmm(of_scores, k).unflatten(1, (-1, length))
                of_key[:, start:end] = torch.bmm(of_scores.transpose(1, 2), q)[:, :length]
        return of_grouped.mul_(ctx.see.scale).flatten(0, 1), of_key, of_value, None, None, None


def _is_half_on_cpu(tensor: torch.Tensor) -> bool:
    """Where torch's fused attention takes two to four times as long as its parts one by one."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16)


def _attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds, see: Sight
) -> torch.Tensor:
    """All sequences, ``[heads, T, D]``, without gradients: as many heads and tokens at once as a CPU's cache holds the
    scores of; a GPU's memory then need not hold those of a whole sequence either."""
    heads, dimensions = key.shape[0], query.shape[-1]
    query = (query * see.scale).unflatten(0, (heads, -1))  # [key heads, group, T, D]
    groups = query.shape[1]
    out = torch.empty_like(query)
    largest = _largest_scores(query.flatten(0, 1), key, bounds, see) if query.dtype == torch.bfloat16 else None
    space = torch.empty(2, 0, dtype=query.dtype, device=query.device)
    for number, (start, end) in enumerate(bounds.pairs):
        length = end - start
        small = largest is not None and largest[number] < _SMALL_SCORE
        block = min(length, _ROWS) if see.hides(length) else length  # what is not seen is left out
        scores_a_head = groups * block * _whole_vectors(length)
        at_once = min(heads, max(1, _CACHED_SCORES // scores_a_head))
        if space.shape[1] < at_once * scores_a_head:
            space = torch.empty(2, at_once * scores_a_head, dtype=query.dtype, device=query.device)
        keys, values = _padded(key[:, start:end]), _padded(value[:, start:end])
        for head in range(0, heads, at_once):
            some = slice(head, min(head + at_once, heads))
            for first in range(0, length, block):
                rows = range(first, min(first + block, length))
                columns = see.columns(rows, length)
                q = query[some, :, start + rows.start : start + rows.stop].reshape(-1, groups * len(rows), dimensions)
                shape = len(q), q.shape[1], len(columns)
                scores, weights = space[:, : math.prod(shape)].view(2, *shape)
                torch.bmm(q, keys[some, columns.start : columns.stop].transpose(1, 2), out=scores)
                if see.softcap is not None:
                    scores.div_(see.softcap).tanh_().mul_(see.softcap)
                if see.hides(length):
                    seen = 0 if see.is_partial(length) else rows.start - columns.start  # columns that all rows see
                    hidden = ~see.visible(rows, columns[seen:], scores.device)
                    scores.unflatten(1, (groups, -1))[..., seen:].masked_fill_(hidden, float("-inf"))
                scores[:, :, length - columns.start :] = float("-inf")
                if small:
                    weights = scores.exp_()
                else:
                    torch.softmax(scores, dim=-1, out=weights)
                mixed = torch.bmm(weights, values[some, columns.start : columns.stop])
                if small:
                    mixed.div_(weights.sum(dim=-1, keepdim=True))
                out[some, :, start + rows.start : start + rows.stop] = mixed.unflatten(1, (groups, -1))
    return out.flatten(0, 1)


def _largest_scores(query: torch.Tensor, key: torch.Tensor, bounds: Bounds, see: Sight) -> list[float]:
    """For each sequence what no score of it is above; ``query`` is scaled."""
    if see.softcap is not None:
        return [see.softcap] * len(bounds.pairs)
    norms = [torch.linalg.vector_norm(tensor, dim=-1).amax(dim=0).tolist() for tensor in (query, key)]
    return [max(norms[0][start:end]) * max(norms[1][start:end]) for start, end in bounds.pairs]
