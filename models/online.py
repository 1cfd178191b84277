"""One-pass learning: score, learn, freeze, save. Bit-identical on one torch thread.

Legend: B = examples, T = tasks, P = ids of an example, H = hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.dense import FlatAdam
from models.embedding import RowwiseAdagrad
from models.encoding import Floats, Inputs
from models.foundation import Foundation
from models.losses import Targets
from models.schema import Distillation, Encoding, Learning, Network
from models.serving_graph import ServingGraph
from models.vertical import Vertical


@dataclass(frozen=True)
class Batch:
    """Examples of one step."""

    inputs: Inputs
    labels_BT: Floats
    """0 or 1; anything where the mask is false."""
    mask_BT: np.ndarray[Any, np.dtype[np.bool_]]
    """True: the label counts."""
    teacher_BT: Floats
    """The teacher's logged logits; NaN = missing."""

    def __len__(self) -> int:
        return len(self.inputs)


class Frozen:
    """A copy of a serving graph that only scores."""

    def __init__(self, graph: ServingGraph) -> None:
        self.graph = graph.requires_grad_(False)

    def score(self, inputs: Inputs) -> Floats:
        """Logits, shape [B, T]."""
        return score(self.graph, inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, live: they never change."""
        return self.graph.state_dict()


class OnlineLearner:
    """A teacher or student with its optimisers.

    A task's heads start at the base rate of the first batch that holds labels of it: Adam alone
    would need thousands of steps to reach the log-odds of a rare label, and a young teacher would
    teach the way there.
    """

    def __init__(self, model: Foundation | Vertical, learning: Learning) -> None:
        self.model = model
        graph = model.serving
        self.rows = RowwiseAdagrad(graph.table, learning.embedding_lr)
        dense = (p for p in model.parameters() if p is not graph.table)
        self.dense = FlatAdam(dense, learning.dense_lr)
        self.started_T = torch.zeros(graph.num_tasks, dtype=torch.bool)

    def score(self, inputs: Inputs) -> Floats:
        """Serving logits, shape [B, T]; learns nothing."""
        return score(self.model.serving, inputs)

    def learn(self, batch: Batch) -> Floats:
        """One step on a batch; nothing is learned if no label counts.

        Returns:
            The serving logits before the step, shape [B, T].
        """
        if not batch.mask_BT.any():
            return self.score(batch.inputs)
        targets = Targets.of(
            torch.from_numpy(batch.labels_BT),
            torch.from_numpy(batch.mask_BT),
            torch.from_numpy(batch.teacher_BT),
        )
        first_T = ~self.started_T & torch.from_numpy(batch.mask_BT.any(axis=0))
        if not first_T.any():
            return self._step(batch.inputs, targets)
        logits = self.score(batch.inputs)
        self._start(targets, first_T)
        self._step(batch.inputs, targets)
        return logits

    def _step(self, inputs: Inputs, targets: Targets) -> Floats:
        ids_BP, sequence_BL, numeric_BN = tensors(self.model.serving, inputs)
        ids_P = ids_BP.flatten()
        rows_PD = self.rows.gather(ids_P)
        rows_BPD = rows_PD.view(*ids_BP.shape, -1)
        hidden_BH = self.model.serving.trunk(rows_BPD, sequence_BL, numeric_BN)
        loss, logits_BT = self.model.loss(hidden_BH, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.rows.step(ids_P, rows_PD)
        self.dense.step()
        logits: Floats = logits_BT.detach().numpy()
        return logits

    @torch.no_grad()
    def _start(self, targets: Targets, first_T: Tensor) -> None:
        """Set the biases of the chosen tasks."""
        count_T = (targets.weight_BT > 0).sum(dim=0)
        bias_T = torch.logit((targets.label_BT.sum(dim=0) + 0.5) / (count_T + 1.0))
        for head in self.model.heads():
            head.bias.copy_(torch.where(first_T, bias_T, head.bias))
        self.started_T |= first_T

    def serving_graph(self) -> ServingGraph:
        """The serving path with live parameters: further steps change them."""
        return self.model.serving

    def freeze(self) -> Frozen:
        """A copy of the serving path as it is now."""
        return self.thaw(self.model.serving.state_dict())

    def thaw(self, state: Mapping[str, Tensor]) -> Frozen:
        """A frozen serving path with a copy of some weights, as `Frozen.state_dict` gave them.

        Raises:
            RuntimeError: names or shapes differ from this learner's serving path.
        """
        weights = {name: value.detach().clone() for name, value in state.items()}
        memo: dict[int, Any] = {id(p): p for p in self.model.serving.parameters()}
        graph = copy.deepcopy(self.model.serving, memo)  # shares the weights, replaced below
        graph.load_state_dict(weights, assign=True)
        return Frozen(graph)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and optimisers, live: copy or save them before the next step."""
        parts = {
            "model": self.model.state_dict(),
            "rows": self.rows.state_dict(),
            "dense": self.dense.state_dict(),
            "started": {"tasks": self.started_T},
        }
        return {
            f"{part}.{name}": value
            for part, state in parts.items()
            for name, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the state of a learner of the same structure.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs; nothing was changed.
        """
        own = self.state_dict()
        differing = sorted(own.keys() ^ state.keys())
        if differing:
            raise ValueError(f"state of another model: {differing[0]!r} is on one side only")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(
                    f"state of another model: {name!r} must have shape {list(value.shape)}, "
                    f"got {list(state[name].shape)}"
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])


def build_student(
    encoding: Encoding,
    network: Network,
    learning: Learning,
    distillation: Distillation,
    tasks: Sequence[str],
) -> OnlineLearner:
    """An untrained student; of one seed, all modes start from the same trunk and serving head."""
    generator = torch.Generator().manual_seed(learning.seed)
    model = Vertical(encoding, network, distillation, len(tasks), generator)
    return OnlineLearner(model, learning)


def build_teacher(
    encoding: Encoding, network: Network, learning: Learning, tasks: Sequence[str]
) -> OnlineLearner:
    """An untrained teacher."""
    generator = torch.Generator().manual_seed(learning.seed)
    return OnlineLearner(Foundation(encoding, network, len(tasks), generator), learning)


def tensors(graph: ServingGraph, inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ids of fields and sequences [B, P]; sequences and numeric inputs where the graph has any."""
    ids_BP = torch.from_numpy(inputs.ids_BF)
    sequence_BL = torch.from_numpy(inputs.sequence_BL) if graph.has_sequences else None
    if sequence_BL is not None:
        ids_BP = torch.cat([ids_BP, sequence_BL], dim=1)
    return ids_BP, sequence_BL, torch.from_numpy(inputs.numeric_BN) if graph.has_numeric else None


def score(graph: ServingGraph, inputs: Inputs) -> Floats:
    """Logits of a graph, shape [B, T]."""
    ids_BP, sequence_BL, numeric_BN = tensors(graph, inputs)
    with torch.inference_mode():
        hidden_BH = graph.trunk(functional.embedding(ids_BP, graph.table), sequence_BL, numeric_BN)
        logits: Floats = graph.head(hidden_BH).numpy()
    return logits
