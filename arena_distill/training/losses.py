"""Losses over three-way logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each row against class probabilities.

    Label smoothing mixes the target with the uniform distribution: ``(1 - s) * target + s / 3`` (Szegedy et al. 2016).

    Args:
        logits: ``[B, 3]``, any float dtype; computed in float32.
        targets: class probabilities ``[B, 3]``, rows sum to 1.
        label_smoothing: s, in [0, 1).

    Returns:
        Loss of each row, float32 ``[B]``, in nats.
    """
    smoothed = targets.float() * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]
    return -(smoothed * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
