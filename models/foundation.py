"""Foundation model (FM): the external teacher, trained on true labels of all domains.

Legend: B = examples, H = hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.losses import Targets, cross_entropy
from models.schema import Encoding, Network
from models.serving_graph import ServingGraph


class Foundation(nn.Module):
    """A serving graph that learns from the label alone; the domain is one of its features."""

    def __init__(
        self, encoding: Encoding, network: Network, num_tasks: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.serving = ServingGraph(encoding, network, num_tasks, generator)

    def heads(self) -> list[nn.Linear]:
        """Layers whose bias is the log-odds of a task."""
        return [self.serving.head]

    def loss(self, hidden_BH: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the serving logits, shape [B, T]."""
        logits_BT: Tensor = self.serving.head(hidden_BH)
        return cross_entropy(logits_BT, targets.label_BT, targets.weight_BT), logits_BT
