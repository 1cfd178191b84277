"""Quality of one model over the stream, by progressive validation, beside shadow, teacher, oracle.

All are compared on the same rows: those with a logit that a published snapshot gave at impression
time ("served"). What the teacher and the transfer ratio say holds on the part of them that has a
teacher's prediction ("covered"). The progressive sums score the live weights just before they learn
a batch, over all rows.

Batches are the unit of summation, so that the sums of a replay agree to the last bit.

Legend: B = rows, T = tasks, K = sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.learning.ranking import Ranking
from flows.learning.timeline import Timeline
from flows.learning.training_rows import Rows
from models.metrics import log_loss, probability

Array = np.ndarray[Any, np.dtype[Any]]

SUMS = (
    "n",
    "positives",
    "student",
    "shadow",
    "oracle",
    "student_predicted",
    "shadow_predicted",
    "n_covered",
    "positives_covered",
    "student_covered",
    "shadow_covered",
    "fm_covered",
    "oracle_covered",
    "fm_predicted",
    "progressive_n",
    "progressive_positives",
    "progressive_student",
    "progressive_shadow",
    "progressive_n_covered",
)
"""Kept of each interval and task: counts, sums of log loss, sums of predicted probabilities."""
INDEX = {name: position for position, name in enumerate(SUMS)}
MAX_INTERVALS = 4096
RECENT_INTERVALS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One batch with the logits to measure, each [B, T]; NaN: none."""

    rows: Rows
    served: Array
    """Of the model, at impression time."""
    served_shadow: Array | None
    live: Array
    """Of the model, just before it learns the batch."""
    live_shadow: Array | None

    @property
    def compared(self) -> Array:
        """Which labels count in the comparison, shape [B, T]."""
        rows = self.rows
        counts = rows.mask_BT & rows.first_B[:, None] & np.isfinite(self.served)
        if self.served_shadow is not None:
            counts = counts & np.isfinite(self.served_shadow)
        return counts


def oracle_loss(probabilities: Array, labels: Array) -> Array:
    """Binary cross entropy of true probabilities, in nats."""
    inside = np.clip(probabilities, 1e-12, 1 - 1e-12)
    loss: Array = -(labels * np.log(inside) + (1 - labels) * np.log1p(-inside))
    return loss


def contributions(scored: Scored) -> Array:
    """What each row adds to the sums, shape [B, T, K]."""
    rows, labels = scored.rows, scored.rows.labels_BT.astype(np.float64)
    compared = scored.compared
    covered = compared & np.isfinite(rows.teacher_BT)
    live = rows.mask_BT & rows.first_B[:, None]
    out = np.zeros((*labels.shape, len(SUMS)))

    def put(name: str, where: Array, values: Array | float = 1.0) -> None:
        out[..., INDEX[name]] = np.where(where, values, 0.0)

    with np.errstate(invalid="ignore"):
        student_loss = log_loss(scored.served, labels)
        put("n", compared)
        put("positives", compared, labels)
        put("student", compared, student_loss)
        put("student_predicted", compared, probability(scored.served))
        put("n_covered", covered)
        put("positives_covered", covered, labels)
        put("student_covered", covered, student_loss)
        put("fm_covered", covered, log_loss(rows.teacher_BT, labels))
        put("fm_predicted", covered, probability(rows.teacher_BT))
        known = np.isfinite(rows.oracle_BT)
        true_loss = oracle_loss(rows.oracle_BT, labels)
        put("oracle", compared & known, true_loss)
        put("oracle_covered", covered & known, true_loss)
        put("progressive_n", live)
        put("progressive_n_covered", live & np.isfinite(rows.teacher_BT))
        put("progressive_positives", live, labels)
        put("progressive_student", live, log_loss(scored.live, labels))
        if scored.served_shadow is not None and scored.live_shadow is not None:
            shadow_loss = log_loss(scored.served_shadow, labels)
            put("shadow", compared, shadow_loss)
            put("shadow_covered", covered, shadow_loss)
            put("shadow_predicted", compared, probability(scored.served_shadow))
            put("progressive_shadow", live, log_loss(scored.live_shadow, labels))
    return out


class Quality:
    """Sums over intervals of event time of the impression, and rankings.

    Args:
        tasks: names, in the order of the logits.
        every_ms: width of an interval at the start.
        has_shadow: whether there is one to compare with.
    """

    def __init__(self, tasks: Sequence[str], every_ms: int, *, has_shadow: bool) -> None:
        self.tasks = tuple(tasks)
        self.has_shadow = has_shadow
        shape = (len(tasks), len(SUMS))
        self.curve: Timeline[Array] = Timeline(
            every_ms, MAX_INTERVALS, lambda: np.zeros(shape), add
        )
        self.ranking = Ranking(len(tasks), every_ms)

    def observe(self, scored: Scored) -> None:
        """Add one batch."""
        rows, compared = scored.rows, scored.compared
        added = contributions(scored)
        for sums, mine in self.curve.of(rows.ts_B):
            sums += added[mine].sum(axis=0)
        shadow = scored.served if scored.served_shadow is None else scored.served_shadow
        logits = {"student": scored.served, "shadow": shadow, "fm": rows.teacher_BT}
        measured = {name: np.where(compared, values, np.nan) for name, values in logits.items()}
        self.ranking.observe(rows.ts_B, rows.user_B, rows.labels_BT, measured)

    def recent(self, num: int = RECENT_INTERVALS) -> Array:
        """Sums of the `num` newest intervals, shape [T, K]."""
        return self.curve.recent(num)

    def state(self) -> dict[str, Array]:
        """Plain arrays for a checkpoint."""
        indices = sorted(self.curve.values)
        sums = [self.curve.values[i] for i in indices]
        shape = (0, len(self.tasks), len(SUMS))
        return {
            "curve/width_ms": np.array(self.curve.width_ms),
            "curve/indices": np.array(indices, dtype=np.int64),
            "curve/sums": np.stack(sums) if sums else np.zeros(shape),
            **{f"ranking/{name}": array for name, array in self.ranking.state().items()},
        }

    def load_state(self, state: dict[str, Array]) -> None:
        """Go on from what `state` returned."""
        self.curve.width_ms = int(state["curve/width_ms"])
        indices = state["curve/indices"].tolist()
        self.curve.values = dict(zip(indices, state["curve/sums"].copy(), strict=True))
        prefix = "ranking/"
        self.ranking.load_state(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def add(into: Array, other: Array) -> None:
    """Add sums in place."""
    into += other
