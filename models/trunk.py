"""The shared backbone: pooled fields, cross layers, then an MLP (DCN-v2, stacked).

Legend: B = examples, P = ids of an example (F fields, then L of sequences), D = embedding width,
N = numeric inputs, X = width of the concatenated input, H = width of the last hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cross import Cross
from models.dense import mlp
from models.schema import Encoding, Network


class Trunk(nn.Module):
    """Embedded rows and numeric inputs to one hidden vector."""

    def __init__(self, encoding: Encoding, network: Network, generator: torch.Generator) -> None:
        super().__init__()
        self.num_ids = len(encoding.categorical) + len(encoding.crosses)
        self.lengths = [f.max_length for f in encoding.sequences]
        self.padding_row = encoding.table_rows
        width = encoding.num_fields * network.dim + len(encoding.numeric)
        self.cross = Cross(width, network.cross_layers, generator)
        self.mlp = mlp((width, *network.hidden), generator)
        self.width = network.hidden[-1] if network.hidden else width

    def forward(
        self, rows_BPD: Tensor, sequence_BL: Tensor | None, numeric_BN: Tensor | None
    ) -> Tensor:
        """Hidden vectors, shape [B, H].

        Args:
            rows_BPD: embedding rows of the fields, then of the sequences; padding rows are 0.
            sequence_BL: ids of the sequences, to tell padding; None without sequences.
            numeric_BN: None without numeric features.
        """
        parts = [rows_BPD]
        if sequence_BL is not None:
            parts = [rows_BPD[:, : self.num_ids], *self._pooled(rows_BPD, sequence_BL)]
        inputs = [part.flatten(1) for part in parts]
        if numeric_BN is not None:
            inputs.append(numeric_BN)
        x0_BX = torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]
        hidden_BH: Tensor = self.mlp(self.cross(x0_BX))
        return hidden_BH

    def _pooled(self, rows_BPD: Tensor, sequence_BL: Tensor) -> list[Tensor]:
        """The mean row of each sequence, shape [B, D]; 0 for an empty one."""
        known_BL = (sequence_BL != self.padding_row).to(rows_BPD.dtype)
        pooled, start = [], 0
        for length in self.lengths:
            end = start + length
            rows_BTD = rows_BPD[:, self.num_ids + start : self.num_ids + end]
            count_B1 = known_BL[:, start:end].sum(dim=1, keepdim=True).clamp(min=1.0)
            pooled.append(rows_BTD.sum(dim=1) / count_B1)
            start = end
        return pooled
