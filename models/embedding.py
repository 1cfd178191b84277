"""One table of embedding rows for all features, and its sparse optimiser.

Legend: R = table rows, D = embedding width, P = ids, in any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_STD = 0.01


def table(num_rows: int, dim: int, generator: torch.Generator) -> nn.Parameter:
    """A table [num_rows + 1, dim], normal with a small deviation; the last row is padding: zero."""
    rows_RD = torch.empty(num_rows + 1, dim).normal_(0.0, INITIAL_STD, generator=generator)
    rows_RD[-1] = 0.0
    return nn.Parameter(rows_RD)


class RowwiseAdagrad:
    """Adagrad with one sum of squares a row, on the rows of a batch only; padding never moves.

    A row that occurs several times in a batch moves once, by the sum of its gradients. Duplicates
    are merged in a zero scratch table, which is cheaper than sorting the ids.

    Source: Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep
    Learning Recommendation Models", ISCA 2022, section 4.1.4.
    """

    def __init__(self, rows_RD: Tensor, lr: float) -> None:
        self.rows_RD, self.lr, self.eps = rows_RD.detach(), lr, 1e-10
        self.sums_R = torch.zeros(len(rows_RD))
        self.scratch_RD = torch.zeros_like(self.rows_RD)

    def gather(self, ids_P: Tensor) -> Tensor:
        """The rows of some ids as a leaf that collects their gradient, shape [P, D]."""
        return self.rows_RD.index_select(0, ids_P).requires_grad_()

    def step(self, ids_P: Tensor, gathered_PD: Tensor) -> None:
        """Move the rows of `ids_P` against the gradient of what `gather` returned for them."""
        assert gathered_PD.grad is not None
        scratch_RD = self.scratch_RD
        scratch_RD.index_add_(0, ids_P, gathered_PD.grad)
        scratch_RD[-1] = 0.0
        gradient_PD = scratch_RD.index_select(0, ids_P)
        scratch_RD.index_fill_(0, ids_P, 0.0)
        sums_P = self.sums_R.index_select(0, ids_P).add_(gradient_PD.square().mean(dim=1))
        # Occurrences of one row write the same value, so their order does not matter.
        self.sums_R.index_copy_(0, ids_P, sums_P)
        step_P1 = sums_P.sqrt_().add_(self.eps).reciprocal_().mul_(-self.lr).unsqueeze(1)
        moved_PD = torch.addcmul(gathered_PD.detach(), gradient_PD, step_P1)
        self.rows_RD.index_copy_(0, ids_P, moved_PD)

    def state_dict(self) -> dict[str, Tensor]:
        """The live state, rows excluded."""
        return {"sums": self.sums_R}
