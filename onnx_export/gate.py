"""Whether a snapshot may be published: a function of its content and of what was published before.

The reference of a task is the best NE seen, and gives way: each judged NE above it moves it by
`FORGETTING` of the distance. A lucky minimum, or a stream that became harder, so locks no model out
for ever, while a sudden rise is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnx_export.session import Logits

MAX_NE = 1.5
"""Refused whatever came before; 1.0 is what a constant achieves."""
FORGETTING = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a snapshot is not published."""

    reason: str
    """Bounded set: not_finite, parity, ne, no_recent, does_not_load."""
    detail: str
    """Thing, value and rule."""


class NeGate:
    """Judges the NE on recent examples against the best so far.

    Args:
        max_increase: relative increase over the reference that is allowed.
    """

    def __init__(self, max_increase: float) -> None:
        self._max_increase = max_increase
        self._reference: dict[str, float] = {}

    def judge(self, ne: Mapping[str, float]) -> Refusal | None:
        """Judge one snapshot and remember it; tasks whose NE is not finite are left out.

        Args:
            ne: of each task, on examples that the weights were not yet learned on.
        """
        refusals = [self._judge_task(t, v) for t, v in ne.items() if math.isfinite(v)]
        return next((r for r in refusals if r), None)

    def _judge_task(self, task: str, value: float) -> Refusal | None:
        reference = self._reference.get(task, value)
        limit = min(MAX_NE, (1 + self._max_increase) * reference)
        moved = reference + FORGETTING * (value - reference)
        self._reference[task] = min(value, moved)
        if value <= limit:
            return None
        detail = f"NE of {task} must be at most {limit:.4f}, got {value:.4f}"
        return Refusal(reason="ne", detail=detail)

    def state(self) -> dict[str, float]:
        """Reference of each task: plain data for a checkpoint."""
        return dict(self._reference)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned."""
        self._reference = dict(state)


def parity(torch_logits_BT: Logits, logits_BT: Logits, max_parity: float) -> Refusal | None:
    """Compare the logits of the live model with those of the snapshot on the same rows.

    Args:
        torch_logits_BT: by the live model.
        logits_BT: by ONNX Runtime.
        max_parity: largest difference allowed.

    Raises:
        ValueError: the shapes differ.
    """
    if torch_logits_BT.shape != logits_BT.shape:
        raise ValueError(
            f"logits must have the shape of the graph's {list(logits_BT.shape)}, "
            f"got {list(torch_logits_BT.shape)}"
        )
    if len(logits_BT) == 0:
        return Refusal(reason="no_recent", detail="no recent example to compare torch and ONNX on")
    if not (np.isfinite(torch_logits_BT).all() and np.isfinite(logits_BT).all()):
        return Refusal(reason="not_finite", detail="a logit of a recent example is not finite")
    difference = float(np.abs(torch_logits_BT - logits_BT).max())
    if difference <= max_parity:
        return None
    detail = f"torch and ONNX logits must agree within {max_parity:g}, differ by {difference:g}"
    return Refusal(reason="parity", detail=detail)
