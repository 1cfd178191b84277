"""A model in training with its shadow, and everything that measures them. One batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.learning.course import Course
from flows.learning.quality import Array, Quality, Scored
from flows.learning.recent import Recent
from flows.learning.served import ServedVersions
from flows.learning.training_rows import Rows
from flows.records import BEGIN_MS
from models.online import Batch
from monitoring.metrics import TRAIN_APPLIED, TRAIN_STEP


class Apprentice:
    """Learns batches; its state is plain tensors and numbers.

    Args:
        course: what to train.
    """

    def __init__(self, course: Course) -> None:
        self.num_learned = 0
        """Examples learned."""
        self.num_labels = [0] * len(course.tasks)
        """Of them, those with a label of each task."""
        self.newest_ms = BEGIN_MS
        """Event time of the newest of their impressions."""
        self.learner = course.learner
        self.quality = Quality(
            course.task_names, course.every_ms, has_shadow=course.shadow is not None
        )
        self.recent = Recent(course.task_names)
        self._course = course
        self._shadow = course.shadow
        # What the teacher's snapshots answered is in the examples.
        self._served = None if course.teaches else ServedVersions(course.learner)
        self._served_shadow = ServedVersions(course.shadow) if course.shadow else None
        self._applied = TRAIN_APPLIED.labels(course.model)
        self._step = TRAIN_STEP.labels(course.model)

    def learn(self, rows: Rows) -> None:
        """Score one batch, measure it, learn it."""
        batch = Batch(rows.inputs, rows.labels_BT, rows.mask_BT, rows.teacher_BT)
        served = self._served.score(rows) if self._served else rows.teacher_BT
        served_shadow = self._served_shadow.score(rows) if self._served_shadow else None
        with self._step.time():
            live = self.learner.learn(batch)
            live_shadow = self._shadow.learn(batch) if self._shadow else None
        scored = Scored(
            rows=rows,
            served=served,
            served_shadow=served_shadow,
            live=live,
            live_shadow=live_shadow,
        )
        self.quality.observe(scored)
        self.recent.observe(rows, live)
        self.num_learned += len(rows)
        added = rows.mask_BT.sum(axis=0).tolist()
        self.num_labels = [a + b for a, b in zip(self.num_labels, added, strict=True)]
        self.newest_ms = max(self.newest_ms, int(rows.ts_B.max()))
        self._applied.inc(len(rows))

    def keep_served(self, boundary_ms: int, oldest_ms: int) -> None:
        """Remember what serves from `boundary_ms` on.

        Args:
            boundary_ms: of the snapshot just published.
            oldest_ms: no impression before it will be learned any more.
        """
        for versions in (self._served, self._served_shadow):
            if versions is not None:
                versions.add(boundary_ms)
                versions.forget(oldest_ms)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimisers, frozen copies and measures, live, for a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = {"learner": self.learner.state_dict()}
        if self._shadow:
            parts["shadow"] = self._shadow.state_dict()
        if self._served:
            parts["served"] = self._served.state()
        if self._served_shadow:
            parts["served_shadow"] = self._served_shadow.state()
        parts["quality"] = as_tensors(self.quality.state())
        parts["recent"] = as_tensors(self.recent.state())
        return {f"{part}:{name}": t for part, state in parts.items() for name, t in state.items()}

    def meta(self) -> dict[str, Any]:
        """Numbers for a checkpoint."""
        return {
            "num_learned": self.num_learned,
            "num_labels": self.num_labels,
            "newest_ms": self.newest_ms,
        }

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from what `tensors` and `meta` returned.

        Raises:
            ValueError: they are of another model.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, name = key.split(":", 1)
            parts.setdefault(part, {})[name] = tensor
        self.learner.load_state_dict(parts["learner"])
        if self._shadow:
            self._shadow.load_state_dict(parts.get("shadow", {}))
        if self._served:
            self._served.load_state(parts.get("served", {}))
        if self._served_shadow:
            self._served_shadow.load_state(parts.get("served_shadow", {}))
        self.quality.load_state(as_arrays(parts["quality"]))
        self.recent.load_state(as_arrays(parts["recent"]))
        self.num_learned, self.newest_ms = meta["num_learned"], meta["newest_ms"]
        self.num_labels = list(meta["num_labels"])


def as_tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    """Copies as tensors."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def as_arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    """The same memory as arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}
