"""Losses over three-way logits: votes, and what teachers say of the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from arena_distill.training.temperature_schedule import TemperatureSchedule


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each row against class probabilities.

    Label smoothing mixes the target with the uniform distribution: ``(1 - s) * target + s / 3`` (Szegedy et al. 2016).

    Args:
        logits: ``[B, 3]``, any float dtype; computed in float32 or more.
        targets: class probabilities ``[B, 3]``, rows sum to 1.
        label_smoothing: s, in [0, 1).

    Returns:
        Loss of each row, ``[B]``, in nats.
    """
    smoothed = _full(targets) * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]
    return -(smoothed * F.log_softmax(_full(logits), dim=-1)).sum(dim=-1)


def teacher_probabilities(
    teacher_logits: torch.Tensor, weights: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teachers say of each row: the weighted mean of ``softmax(logits / temperature)`` over those that speak.

    Args:
        teacher_logits: raw logits ``[B, K, 3]``; a teacher that has no say on a row has NaN there.
        weights: of the teachers, ``[K]``, positive; on each row those that speak share out the whole.
        temperature: positive; above 1 flattens.

    Returns:
        Probabilities ``[B, 3]`` (uniform where nobody speaks), and whether anybody does, bool ``[B]``.
    """
    logits = _full(teacher_logits)
    speaks = torch.isfinite(logits).all(dim=-1)
    each = F.softmax(torch.where(speaks[..., None], logits, 0.0) / temperature, dim=-1)
    share = weights.to(each) * speaks
    total = share.sum(dim=-1, keepdim=True)
    heard = total[:, 0] > 0
    share = torch.where(heard[:, None], share, 1.0)
    mean = (each * share[..., None]).sum(dim=1) / share.sum(dim=-1, keepdim=True)
    return mean, heard


def distillation_kl(logits: torch.Tensor, soft_targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² · KL(soft_targets ‖ softmax(logits / T))`` of each row (Hinton et al. 2015, section 2.1).

    The factor T² keeps the gradient's size when T changes.

    Args:
        logits: of the student, ``[B, 3]``.
        soft_targets: of the teachers at the same temperature, ``[B, 3]``.
        temperature: T, positive.

    Returns:
        ``[B]``, in nats, never negative but for rounding.
    """
    log_p = F.log_softmax(_full(logits) / temperature, dim=-1)
    q = soft_targets.to(log_p)
    return temperature**2 * (torch.special.xlogy(q, q) - q * log_p).sum(dim=-1)


def probability_mse(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Squared difference between ``softmax(logits)`` and ``probabilities``, mean over the classes; ``[B]``."""
    p = F.softmax(_full(logits), dim=-1)
    return (p - probabilities.to(p)).square().mean(dim=-1)


def cosine_distance(logits: torch.Tensor, soft_targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """``1 - cos`` of the angle between ``softmax(logits / T)`` and ``soft_targets``, both ``[B, 3]``; ``[B]``."""
    p = F.softmax(_full(logits) / temperature, dim=-1)
    return 1.0 - F.cosine_similarity(p, soft_targets.to(p), dim=-1)


@dataclass(frozen=True)
class DistillationLoss:
    """What a student is trained on, row by row.

    ``alpha · T² · KL(teacher_T ‖ student_T) + (1 - alpha) · CE(votes)
    + mse_weight · MSE(p) + cosine_weight · (1 - cos)``

    A row of which no teacher says anything has its votes' cross-entropy alone, with weight 1, so that it counts as much
    as any other row. MSE compares probabilities at temperature 1, the cosine those at T.
    """

    alpha: float  # share of the teachers, 0 to 1
    temperature: TemperatureSchedule
    mse_weight: float = 0.0
    cosine_weight: float = 0.0
    label_smoothing: float = 0.0  # of the votes
    teacher_weights: tuple[float, ...] = ()

    @property
    def hears_teachers(self) -> bool:
        """Whether teachers change anything."""
        return bool(self.alpha or self.mse_weight or self.cosine_weight)

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, teacher_logits: torch.Tensor | None, progress: float = 0.0
    ) -> torch.Tensor:
        """Loss of each row, ``[B]``, in nats (but for MSE and cosine).

        Args:
            logits: of the student, ``[B, 3]``.
            targets: votes, ``[B, 3]``, rows sum to 1.
            teacher_logits: raw, ``[B, K, 3]``, NaN where a teacher has no say; None: votes alone.
            progress: share of the training that is done, for the temperature.
        """
        votes = soft_cross_entropy(logits, targets, self.label_smoothing)
        if teacher_logits is None or not self.hears_teachers:
            return votes
        weights = torch.tensor(
            self.teacher_weights or (1.0,) * teacher_logits.shape[1], dtype=torch.float64, device=logits.device
        )
        temperature = self.temperature.at(progress)
        soft, heard = teacher_probabilities(teacher_logits, weights, temperature)
        loss = self.alpha * distillation_kl(logits, soft, temperature) + (1.0 - self.alpha) * votes
        if self.mse_weight:
            loss = loss + self.mse_weight * probability_mse(
                logits, teacher_probabilities(teacher_logits, weights, 1.0)[0]
            )
        if self.cosine_weight:
            loss = loss + self.cosine_weight * cosine_distance(logits, soft, temperature)
        return torch.where(heard, loss, votes)


def votes_loss(label_smoothing: float = 0.0) -> DistillationLoss:
    """Cross-entropy of the votes alone, for models that have no teachers."""
    return DistillationLoss(alpha=0.0, temperature=TemperatureSchedule(1.0, 1.0), label_smoothing=label_smoothing)


def _full(values: torch.Tensor) -> torch.Tensor:
    """At least float32: half precision has too few bits for a logarithm."""
    return values if values.dtype == torch.float64 else values.float()
