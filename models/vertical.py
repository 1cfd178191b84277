"""Vertical model (VM): the student. Serving head, auxiliary head and adapter over one trunk.

Legend: B = examples, H = hidden width, T = tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.adapter import StudentAdapter
from models.dense import linear
from models.losses import Targets, blended, cross_entropy, scale_gradient, scaled
from models.schema import Distillation, Encoding, Network
from models.serving_graph import ServingGraph


class Vertical(nn.Module):
    """A serving graph, and beside it what learning from the teacher needs.

    What all modes share draws its first weights first, so that a student and its shadow of mode
    `none` start from the same trunk and serving head.

    Source: Liang et al., "External Large Foundation Model", arXiv 2502.17494, section 4.
    """

    def __init__(
        self,
        encoding: Encoding,
        network: Network,
        distillation: Distillation,
        num_tasks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.distillation = distillation
        self.serving = ServingGraph(encoding, network, num_tasks, generator)
        width = self.serving.trunk.width
        mode = distillation.mode
        self.auxiliary = linear(width, num_tasks, generator) if mode in ("ah", "ah_sa") else None
        self.adapter = StudentAdapter(num_tasks, generator) if mode.endswith("_sa") else None

    def heads(self) -> list[nn.Linear]:
        """Layers whose bias is the log-odds of a task."""
        return [h for h in (self.serving.head, self.auxiliary) if h is not None]

    def loss(self, hidden_BH: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the serving logits, shape [B, T]."""
        settings = self.distillation
        logits_BT: Tensor = self.serving.head(hidden_BH)
        if settings.mode == "none":
            return cross_entropy(logits_BT, targets.label_BT, targets.weight_BT), logits_BT
        probability_BT, loss = self._teacher(targets)
        label_BT = targets.label_BT
        if self.auxiliary is None:
            label_BT = blended(targets, probability_BT, settings.kd_lambda)
        else:
            guess_BT = self.auxiliary(scale_gradient(hidden_BH, settings.beta))
            wanted_BT = scaled(probability_BT, settings.alpha)
            loss = loss + settings.weight * cross_entropy(guess_BT, wanted_BT, targets.taught_BT)
        return loss + cross_entropy(logits_BT, label_BT, targets.weight_BT), logits_BT

    def _teacher(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """The probability to learn from, shape [B, T], without gradient; the adapter's own loss."""
        if self.adapter is None:
            return torch.sigmoid(targets.teacher_BT), torch.zeros(())
        adapted_BT: Tensor = self.adapter(targets.teacher_BT)
        loss = cross_entropy(adapted_BT, targets.label_BT, targets.taught_BT)
        return torch.sigmoid(adapted_BT.detach()), loss
