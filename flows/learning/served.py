"""What the snapshots would have answered at impression time: frozen copies of the last few.

An impression at t was served by the last snapshot with a boundary at or below t. Copies are kept as
long as an example may still come that one of them served.

Legend: B = rows, T = tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from flows.learning.training_rows import Rows
from models.online import Frozen, OnlineLearner

Array = np.ndarray[Any, np.dtype[Any]]
Logits = np.ndarray[Any, np.dtype[np.float32]]


class ServedVersions:
    """Copies of one learner's published snapshots, by boundary.

    Args:
        learner: whose serving path is copied.
    """

    def __init__(self, learner: OnlineLearner) -> None:
        self._learner = learner
        self._copies: dict[int, Frozen] = {}

    def add(self, boundary_ms: int) -> None:
        """Keep the weights as they are now; boundaries come in ascending order."""
        self._copies[boundary_ms] = self._learner.freeze()

    def forget(self, before_ms: int) -> None:
        """Drop what served only impressions before `before_ms`."""
        older = [b for b in self._copies if b <= before_ms]
        for boundary in older[:-1]:
            del self._copies[boundary]

    def score(self, rows: Rows) -> Logits:
        """Logits given at impression time, shape [B, T]; NaN where there was no snapshot yet."""
        logits_BT = np.full(rows.mask_BT.shape, np.nan, dtype=np.float32)
        boundaries = np.array(list(self._copies), dtype=np.int64)
        served_by = np.searchsorted(boundaries, rows.ts_B, side="right") - 1
        served_by[~rows.first_B] = -1  # corrections look back further than the copies do
        for position in np.unique(served_by[served_by >= 0]).tolist():
            mine = np.flatnonzero(served_by == position)
            copy = self._copies[int(boundaries[position])]
            logits_BT[mine] = copy.score(rows.inputs.take(mine))
        return logits_BT

    def state(self) -> dict[str, Tensor]:
        """The copies, by `boundary/name`: plain data for a checkpoint."""
        return {
            f"{boundary}/{name}": value
            for boundary, copy in self._copies.items()
            for name, value in copy.state_dict().items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        by_boundary: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            boundary, name = key.split("/", 1)
            by_boundary.setdefault(int(boundary), {})[name] = value
        self._copies = {b: self._learner.thaw(by_boundary[b]) for b in sorted(by_boundary)}
