"""Cross layers of DCN-v2.

Legend: B = examples, X = width of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dense import linear


class Cross(nn.Module):
    """Bounded-degree feature interactions: x_{l+1} = x_0 * (W x_l + b) + x_l.

    Source: Wang et al., "DCN V2", WWW 2021, equation 1.
    """

    def __init__(self, width: int, num_layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(width, width, generator) for _ in range(num_layers))

    def forward(self, x0_BX: Tensor) -> Tensor:
        """The crossed input, shape [B, X]; the input itself with no layer."""
        x_BX = x0_BX
        for layer in self.layers:
            x_BX = torch.addcmul(x_BX, x0_BX, layer(x_BX))
        return x_BX
