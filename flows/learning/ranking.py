"""AUC and GAUC over the stream, in a few blocks of event time, so that a part can be summed up.

Counts do not depend on how rows are grouped into updates, so rows are gathered first.

Legend: B = rows, T = tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flows.learning.timeline import Timeline
from models import metrics

Array = np.ndarray[Any, np.dtype[Any]]

MAX_BLOCKS = 16
GAUC_ROWS = 2**16
"""Rows a block keeps for GAUC; beyond, a sample of users."""
GATHERED_ROWS = 4096
SCORES = ("student", "shadow", "fm")

Block = dict[str, metrics.Quality]


def block(num_tasks: int) -> Block:
    """Measures by score and position of the task, that nothing was added to."""
    return {f"{s}/{t}": metrics.Quality(GAUC_ROWS) for s in SCORES for t in range(num_tasks)}


def merge(into: Block, other: Block) -> None:
    """Add the measures of another block."""
    for name, quality in other.items():
        into[name].merge(quality)


class Ranking:
    """AUC and GAUC of student, shadow and teacher.

    Args:
        num_tasks: T.
        width_ms: of a block at the start.
    """

    def __init__(self, num_tasks: int, width_ms: int) -> None:
        self._num_tasks = num_tasks
        self._blocks: Timeline[Block] = Timeline(
            width_ms, MAX_BLOCKS, lambda: block(num_tasks), merge
        )
        self._gathered: list[dict[str, Array]] = []
        self._num_gathered = 0

    def observe(
        self, ts_B: Array, users_B: Array, labels_BT: Array, logits: dict[str, Array]
    ) -> None:
        """Add rows; `logits` has [B, T] by score, NaN where a row is not measured."""
        columns = {"ts": ts_B, "users": users_B, "labels": labels_BT, **logits}
        self._gathered.append(columns)
        self._num_gathered += len(ts_B)
        if self._num_gathered >= GATHERED_ROWS:
            self.settle()

    def settle(self) -> None:
        """Add what was gathered."""
        if not self._gathered:
            return
        names = self._gathered[0]
        rows = {n: np.concatenate([part[n] for part in self._gathered]) for n in names}
        self._gathered, self._num_gathered = [], 0
        for measures, mine in self._blocks.of(rows["ts"]):
            for score in SCORES:
                for task in range(self._num_tasks):
                    measures[f"{score}/{task}"].update(
                        rows[score][mine, task], rows["labels"][mine, task], rows["users"][mine]
                    )

    def last_two_thirds(self) -> Block:
        """Measures over the last two thirds of event time, to the width of a block."""
        self.settle()
        return self._blocks.since(self._blocks.last_two_thirds_ms())

    def state(self) -> dict[str, Array]:
        """Plain arrays for a checkpoint."""
        self.settle()
        state = {"width_ms": np.array(self._blocks.width_ms)}
        for index, measures in self._blocks.values.items():
            for name, quality in measures.items():
                state |= {f"{index}/{name}/{k}": v for k, v in quality.state().items()}
        return state

    def load_state(self, state: dict[str, Array]) -> None:
        """Go on from what `state` returned."""
        self._blocks.width_ms = int(state["width_ms"])
        parts: dict[tuple[int, str], dict[str, Array]] = {}
        for key, array in state.items():
            if key != "width_ms":
                index, score, task, name = key.split("/")
                parts.setdefault((int(index), f"{score}/{task}"), {})[name] = array
        self._blocks.values = {}
        for (number, measure), arrays in parts.items():
            into = self._blocks.values.setdefault(number, {})
            into[measure] = metrics.Quality.restore(arrays)
