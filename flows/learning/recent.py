"""What the snapshot gate is shown: the newest examples, and their NE before they were learned.

Legend: B = rows, T = tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flows.learning.training_rows import Rows
from models.encoding import Inputs
from models.metrics import log_loss_sums, normalised_entropy

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 256
"""Rows that torch and ONNX are compared on."""
HORIZON = 20_000
"""Rows after which an NE counts for 1/e of what it did."""
MIN_POSITIVES = 50
"""An NE of fewer positives is noise, and judged by nobody."""


class Recent:
    """Decaying sums of log loss, and the newest inputs."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tuple(tasks)
        self._sums = np.zeros((3, len(tasks)))  # rows, positives, log loss
        self._sample: list[Inputs] = []

    def observe(self, rows: Rows, logits_BT: Array) -> None:
        """Add a batch with the logits that it got just before it was learned.

        Corrections are learned, but the NE is of first examples only.
        """
        mask_BT = rows.mask_BT & rows.first_B[:, None]
        added = np.stack(
            [
                mask_BT.sum(axis=0),
                rows.labels_BT.sum(axis=0, where=mask_BT),
                log_loss_sums(logits_BT, rows.labels_BT, mask_BT),
            ]
        )
        self._sums = self._sums * math.exp(-len(rows) / HORIZON) + added
        self._sample.append(rows.inputs)
        if len(self._sample) > 1 and sum(len(part) for part in self._sample[1:]) >= SAMPLE:
            self._sample.pop(0)

    def ne(self) -> dict[str, float]:
        """NE of the tasks with enough positives."""
        rows, positives, losses = self._sums
        return {
            task: normalised_entropy(losses[t], positives[t], rows[t])
            for t, task in enumerate(self._tasks)
            if positives[t] >= MIN_POSITIVES
        }

    def sample(self) -> Inputs:
        """The newest inputs, at most `SAMPLE`."""
        return Inputs.concat(self._sample).take(slice(-SAMPLE, None))

    def state(self) -> dict[str, Array]:
        """Plain arrays for a checkpoint."""
        state: dict[str, Array] = {"sums": self._sums}
        for i, part in enumerate(self._sample):
            state |= {f"{i}/ids": part.ids_BF, f"{i}/sequence": part.sequence_BL}
            state[f"{i}/numeric"] = part.numeric_BN
        return state

    def load_state(self, state: dict[str, Array]) -> None:
        """Go on from what `state` returned."""
        self._sums = state["sums"].copy()
        self._sample = [
            Inputs(state[f"{i}/ids"], state[f"{i}/sequence"], state[f"{i}/numeric"])
            for i in range((len(state) - 1) // 3)
        ]
