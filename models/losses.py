"""Losses of teacher and student.

With label y, serving logit z_s, auxiliary logit z_a, teacher probability p_F = sigmoid(z_F) and
adapter p_SA, and BCE the binary cross entropy:

    none    BCE(z_s, y)
    kd      BCE(z_s, (1 - lambda) y + lambda p_F)
    kd_sa   BCE(z_s, (1 - lambda) y + lambda stop(p_SA)) + BCE(p_SA, y)
    ah      BCE(z_s, y) + w BCE(z_a, min(alpha p_F, 1))
    ah_sa   BCE(z_s, y) + w BCE(z_a, min(alpha stop(p_SA), 1)) + BCE(p_SA, y)

Each is a mean over the labels that count. Without a teacher's prediction the target of kd is y, and
the terms with z_a and p_SA are 0 for that label.

Source: Liang et al., "External Large Foundation Model", arXiv 2502.17494, section 4.

Legend: B = examples, T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MAX_LOGIT = 15.0
"""Teacher logits are clipped to ± this; probabilities beyond differ by 3e-7."""


@dataclass(frozen=True)
class Targets:
    """What a batch teaches; every value is finite."""

    label_BT: Tensor
    """0 or 1; 0 where it does not count."""
    weight_BT: Tensor
    """1 / (labels that count) where the label counts, else 0: a weighted sum is their mean."""
    taught_BT: Tensor
    """`weight_BT` where there is a teacher's prediction too, else 0."""
    teacher_BT: Tensor
    """Clipped logits; 0 where there is none."""

    @staticmethod
    def of(label_BT: Tensor, mask_BT: Tensor, teacher_BT: Tensor) -> Targets:
        """Targets of a batch; a logit that is not finite is a missing prediction."""
        weight_BT = mask_BT.to(torch.float32) / mask_BT.sum().clamp(min=1)
        known_BT = torch.isfinite(teacher_BT)
        return Targets(
            label_BT=torch.where(mask_BT, label_BT, 0.0),
            weight_BT=weight_BT,
            taught_BT=weight_BT * known_BT,
            teacher_BT=torch.where(known_BT, teacher_BT, 0.0).clamp(-MAX_LOGIT, MAX_LOGIT),
        )


def cross_entropy(logits_BT: Tensor, target_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Weighted sum of the binary cross entropies, a scalar; exactly 0 where the weight is 0."""
    return functional.binary_cross_entropy_with_logits(
        logits_BT, target_BT, weight=weight_BT, reduction="sum"
    )


def blended(targets: Targets, probability_BT: Tensor, share: float) -> Tensor:
    """Target of a single head: (1 - share) y + share p; y where there is no prediction."""
    mixed_BT = torch.lerp(targets.label_BT, probability_BT, share)
    return torch.where(targets.taught_BT > 0, mixed_BT, targets.label_BT)


def scaled(probability_BT: Tensor, alpha: float) -> Tensor:
    """Target of the auxiliary head: min(alpha p, 1)."""
    return (probability_BT * alpha).clamp(max=1.0)


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        """The values as they are."""
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times the factor."""
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that flows back through them is multiplied by `factor`."""
    if factor == 1.0:
        return values
    result: Tensor = _ScaleGradient.apply(values, factor)
    return result
