"""Trains one model on its examples, in order, and publishes it at boundaries of event time.

Batches are cut from one sequence of rows, and the rest of a batch is carried over a snapshot, so
that the weights depend on the sequence alone, not on the messages or the moments that brought it.

Everything that decides what comes next is in the checkpoint: a trainer that is killed starts from
it, reads the same rows again, and publishes the same snapshots.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from flows.learning.apprentice import Apprentice, as_arrays, as_tensors
from flows.learning.course import Course
from flows.learning.example_reader import Place, Ready
from flows.learning.quality_report import document, set_gauges
from flows.learning.quiet import QuietStream
from flows.learning.training_rows import RowReader, Rows
from flows.records import BEGIN_MS, END_MS, floor_ms
from flows.run_folder import RunFolder, write_json
from flows.settings import Gate
from models import checkpoint
from models.encoding import Encoder
from monitoring.metrics import SNAPSHOT_REFUSED, TRAIN_FRESHNESS, TRAIN_THROUGH
from onnx_export.publish import Outcome, Publisher
from onnx_export.store import SnapshotConflict, SnapshotStore

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 5.0
CHECKPOINT_SHARE = 0.05
"""Writing checkpoints takes at most about this share of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Announcement:
    """A snapshot that was published."""

    model: str
    version: int
    frontier_ms: int
    """No snapshot of the model at or below it will appear any more."""
    path: str


class Trainer:
    """One model, from its checkpoint or from the beginning.

    Args:
        course: what to train.
        store: where its snapshots go.
        gate: when one is refused.
        folder: of the run.
        start: the place to begin at if there is no checkpoint.
        quiet: live: when to publish by the wall clock; None: event time decides alone.
    """

    def __init__(
        self,
        course: Course,
        store: SnapshotStore,
        gate: Gate,
        folder: RunFolder,
        start: Place,
        quiet: QuietStream | None = None,
    ) -> None:
        self.place = start
        """How far `examples` is applied, carried rows included."""
        self._course = course
        self._quiet = quiet
        self._store = store
        self._checkpoint = checkpoint_path(folder, course.model)
        self._document = folder.quality / f"{course.model}.json"
        self._reader = RowReader(Encoder(course.encoding), course.tasks, course.domains)
        self._apprentice = Apprentice(course)
        self._publisher = Publisher(
            store,
            course.model,
            course.learner.serving_graph(),
            course.encoding,
            course.task_names,
            max_parity=gate.max_parity,
            max_ne_increase=gate.max_ne_increase,
        )
        self._carried: list[Rows] = []
        self._num_carried = 0
        self._boundary: int | None = None
        """Of the next snapshot; None: nothing was learned since the last."""
        self._cut_ms = BEGIN_MS
        self._announced: list[Announcement] = []
        self._frontier_ms = store.frontier(course.model) if course.teaches else BEGIN_MS
        self._unsaved = False
        self._saved_s = time.monotonic()
        self._pause_s = CHECKPOINT_EVERY_S
        if self._checkpoint.exists():
            self._load()

    def apply(self, ready: Ready) -> list[Announcement]:
        """Learn complete buckets, and publish at each boundary that they pass."""
        rows = self._reader.read(ready.table)
        intervals = rows.closed_B // self._course.every_ms
        starts = np.flatnonzero(np.diff(intervals, prepend=-1)).tolist()
        for start, stop in pairwise([*starts, len(rows)]):
            boundary_ms = int(intervals[start]) * self._course.every_ms
            self._reach(boundary_ms)
            self._advance(boundary_ms)
            self._take(rows.take(slice(start, stop)))
        self._reach(ready.place.through_ms)
        if ready.ended:
            self._finish()
        self._advance(ready.place.through_ms)
        self._unsaved |= ready.place != self.place
        self.place = ready.place
        cut = self._cut_quietly()
        self._observe()
        due = self._unsaved and time.monotonic() >= self._saved_s + self._pause_s
        if cut or due or ready.ended:
            self.save()
        announced, self._announced = self._announced, []
        return announced

    def save(self) -> None:
        """Write the checkpoint, and the quality so far."""
        began = time.monotonic()
        tensors = self._apprentice.tensors()
        if self._carried:
            carried = as_tensors(Rows.concat(self._carried).arrays())
            tensors |= {f"carried:{name}": tensor for name, tensor in carried.items()}
        meta = {
            **self._apprentice.meta(),
            "place": asdict(self.place),
            "boundary": self._boundary,
            "cut_ms": self._cut_ms,
            "gate": self._publisher.state(),
        }
        checkpoint.save(self._checkpoint, tensors, meta)
        quality = self._apprentice.quality
        model, domains = self._course.model, self._course.domains
        content = document(model, domains, quality, has_users=self._course.has_users)
        write_json(self._document, content)
        set_gauges(model, quality, content["totals"])
        self._unsaved, self._saved_s = False, time.monotonic()
        self._pause_s = max(CHECKPOINT_EVERY_S, (self._saved_s - began) / CHECKPOINT_SHARE)

    def _take(self, rows: Rows) -> None:
        self._carried.append(rows)
        self._num_carried += len(rows)
        size = self._course.learning.batch
        if self._num_carried < size:
            return
        rows = Rows.concat(self._carried)
        full = len(rows) // size * size
        for start in range(0, full, size):
            self._learn(rows.take(slice(start, start + size)))
        self._carried = [rows.take(slice(full, None))] if full < len(rows) else []
        self._num_carried = len(rows) - full

    def _learn(self, rows: Rows) -> None:
        self._apprentice.learn(rows)
        every_ms = self._course.every_ms
        self._boundary = floor_ms(int(rows.closed_B[-1]), every_ms) + every_ms

    def _reach(self, ts_ms: int) -> None:
        """Every bucket before `ts_ms` has been taken."""
        if self._boundary is not None and ts_ms >= self._boundary:
            self._cut(self._boundary)
            self._boundary = None

    def _advance(self, ts_ms: int) -> None:
        """Whatever was to be published at or below `ts_ms` has been."""
        every_ms = self._course.every_ms
        if self._course.teaches and ts_ms // every_ms > self._frontier_ms // every_ms:
            self._store.set_frontier(self._course.model, ts_ms)
            self._frontier_ms = ts_ms

    def _finish(self) -> None:
        """Learn the rest of a batch; a last snapshot holds it."""
        if self._num_carried:
            self._learn(Rows.concat(self._carried))
            self._carried, self._num_carried = [], 0
            assert self._boundary is not None
            self._boundary = max(self._boundary, self._cut_ms + self._course.every_ms)
            self._reach(END_MS)

    def _cut_quietly(self) -> bool:
        """Publish where event time has stopped, if the wall clock wants it; no batch is cut."""
        through_ms = self.place.through_ms
        if self._quiet is None or not self._quiet.overdue(through_ms) or self._boundary is None:
            return False
        if through_ms <= max(self._cut_ms, self._frontier_ms):
            return False
        self._cut(through_ms)
        self._boundary = None
        return True

    def _cut(self, boundary_ms: int) -> None:
        self._cut_ms = boundary_ms
        apprentice, course = self._apprentice, self._course
        if min(apprentice.num_labels) < course.warmup_examples:
            return  # a head that learned nothing serves nobody, and teaches nobody
        outcome = self._publish(boundary_ms)
        if not outcome.published:
            return
        carried = [int(rows.ts_B.min()) for rows in self._carried]
        apprentice.keep_served(boundary_ms, min([boundary_ms - course.max_window_ms, *carried]))
        self._announced.append(
            Announcement(
                model=course.model,
                version=boundary_ms,
                frontier_ms=boundary_ms,
                path=str(self._store.path(course.model, boundary_ms)),
            )
        )

    def _publish(self, version: int) -> Outcome:
        apprentice, model = self._apprentice, self._course.model
        sample, ne = apprentice.recent.sample(), apprentice.recent.ne()
        try:
            return self._publisher.publish(
                version,
                newest_example_ms=apprentice.newest_ms,
                num_examples=apprentice.num_learned,
                recent=sample,
                torch_logits=apprentice.learner.score(sample),
                quality={f"ne_{task}": value for task, value in ne.items()},
                ne=ne,
            )
        except SnapshotConflict as error:
            if self._quiet is None:
                raise
            # A shard that was passed over before a crash may not be so after it.
            logger.warning("%s %d is not published again: %s", model, version, error)
            SNAPSHOT_REFUSED.labels(model, "conflict").inc()
            return Outcome(published=False, reason="conflict", detail=str(error))

    def _observe(self) -> None:
        model, newest_ms = self._course.model, self._apprentice.newest_ms
        if newest_ms != BEGIN_MS:
            TRAIN_FRESHNESS.labels(model).set(newest_ms / 1000)
        if self.place.through_ms < END_MS:
            TRAIN_THROUGH.labels(model).set(self.place.through_ms / 1000)

    def _load(self) -> None:
        tensors, meta = checkpoint.load(self._checkpoint)
        carried = as_arrays(
            {n.removeprefix("carried:"): t for n, t in tensors.items() if n.startswith("carried:")}
        )
        if carried:
            self._carried = [Rows(**carried)]
            self._num_carried = len(self._carried[0])
        rest = {name: t for name, t in tensors.items() if not name.startswith("carried:")}
        try:
            self._apprentice.load(rest, meta)
        except ValueError as error:
            raise ValueError(f"{self._checkpoint}: {error}") from error
        self.place = saved_place(meta)
        self._boundary, self._cut_ms = meta["boundary"], meta["cut_ms"]
        self._publisher.load_state(meta["gate"])


def checkpoint_path(folder: RunFolder, model: str) -> Path:
    """The one file that a trainer goes on from."""
    return folder.checkpoints / model / "checkpoint.pt"


def saved_place(meta: dict[str, object]) -> Place:
    """The place in a checkpoint's plain data."""
    place = meta["place"]
    assert isinstance(place, dict)
    return Place(
        positions=tuple(place["positions"]),
        applied=tuple(place["applied"]),
        through_ms=place["through_ms"],
    )
