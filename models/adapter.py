"""Student adapter: corrects the teacher's stale, cross-domain logit before the student learns it.

Source: Liang et al., "External Large Foundation Model", arXiv 2502.17494, section 4.2.

Legend: B = examples, T = tasks, W = hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 16


class StudentAdapter(nn.Module):
    """A small residual MLP a task on the teacher's logit; the identity at the start."""

    def __init__(self, num_tasks: int, generator: torch.Generator) -> None:
        super().__init__()
        slope_TW = torch.empty(num_tasks, WIDTH).normal_(0.0, 1.0, generator=generator)
        knee_TW = torch.empty(num_tasks, WIDTH).uniform_(-3.0, 3.0, generator=generator)
        self.slope_TW = nn.Parameter(slope_TW)
        self.shift_TW = nn.Parameter(-slope_TW * knee_TW)  # the ReLUs bend at logits in [-3, 3]
        self.out_TW = nn.Parameter(torch.zeros(num_tasks, WIDTH))
        self.bias_T = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, teacher_BT: Tensor) -> Tensor:
        """Corrected logits, shape [B, T], of finite teacher logits."""
        hidden_BTW = torch.relu(teacher_BT.unsqueeze(2) * self.slope_TW + self.shift_TW)
        return teacher_BT + (hidden_BTW * self.out_TW).sum(dim=2) + self.bias_T
