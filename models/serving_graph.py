"""The serving path: encoded inputs to one logit a task. What is exported, and nothing else.

Legend: B = examples, F = fields, L = ids of sequences, P = F + L, D = embedding width,
N = numeric inputs, T = tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import embedding
from models.dense import linear
from models.schema import Encoding, Network
from models.trunk import Trunk


class ServingGraph(nn.Module):
    """Table, trunk and one serving head a task."""

    def __init__(
        self,
        encoding: Encoding,
        network: Network,
        num_tasks: int,
        generator: torch.Generator | None = None,
        stored_rows: int | None = None,
    ) -> None:
        """Build with random weights.

        Args:
            encoding: inputs of the graph.
            network: widths.
            num_tasks: logits of an example.
            generator: source of the first weights; None: seed 0.
            stored_rows: rows held by the table in place of `encoding.table_rows`, for an export
                template that is never run; ids and padding keep their meaning.
        """
        super().__init__()
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        self.table = embedding.table(stored_rows or encoding.table_rows, network.dim, source)
        self.trunk = Trunk(encoding, network, source)
        self.head = linear(self.trunk.width, num_tasks, source)
        self.num_tasks = num_tasks
        self.has_sequences = bool(encoding.sequences)
        self.has_numeric = bool(encoding.numeric)

    def forward(
        self,
        ids_BF: Tensor,
        sequence_BL: Tensor | None = None,
        numeric_BN: Tensor | None = None,
    ) -> Tensor:
        """Logits, shape [B, T].

        Args:
            ids_BF: int64 rows in [0, table_rows).
            sequence_BL: int64 rows, `table_rows` = padding; None if there are no sequences.
            numeric_BN: float32; None if there are no numeric features.
        """
        ids_BP = ids_BF if sequence_BL is None else torch.cat([ids_BF, sequence_BL], dim=1)
        logits_BT: Tensor = self.head(
            self.trunk(functional.embedding(ids_BP, self.table), sequence_BL, numeric_BN)
        )
        return logits_BT
