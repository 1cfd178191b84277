"""The dataflow that trains models: examples in, snapshots out, announced on `snapshots`.

The teacher's flow and the students' are this one with other courses. A model is trained where its
examples are read: the step behind the source exchanges nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import bytewax.operators as op
import torch
import xxhash
from bytewax.dataflow import Dataflow

from flows.inference.teacher import store_path
from flows.kafka.sink import TopicSink
from flows.learning.course import Course
from flows.learning.example_reader import Place
from flows.learning.example_source import ExampleSource, Lesson
from flows.learning.quiet import QuietStream
from flows.learning.trainer import Announcement, Trainer, checkpoint_path, saved_place
from flows.learning.training_rows import RowReader
from flows.run_folder import RunFolder
from flows.runner import Placement, run_flow
from flows.settings import Settings, SettingsError
from models import checkpoint
from models.encoding import Encoder
from onnx_export.store import SnapshotStore

EPOCH_S = 1.0
"""Interval at which announcements are waited for."""

Message = tuple[str, tuple[bytes | None, bytes, int]]


class School:
    """The trainers of this process, each begun when its first lesson comes."""

    def __init__(self, settings: Settings, folder: RunFolder, courses: Sequence[Course]) -> None:
        self._settings = settings
        self._folder = folder
        self._courses = {course.model: course for course in courses}
        self._trainers: dict[str, Trainer] = {}

    def place(self, model: str) -> Place:
        """Where the checkpoint says that a model goes on; without one, the start."""
        path = checkpoint_path(self._folder, model)
        if path.exists():
            _, meta = checkpoint.load(path)
            return self._fitting(saved_place(meta), path)
        return self._start()

    def source(self) -> ExampleSource:
        """The examples of all models."""
        keep = {
            model: RowReader(Encoder(course.encoding), course.tasks, course.domains).keep
            for model, course in self._courses.items()
        }
        return ExampleSource(self._settings, self.place, keep)

    def learn(self, lesson: Lesson) -> list[Message]:
        """Apply a lesson; returns announcements of what was published."""
        trainer = self._trainers.get(lesson.model)
        if lesson.ready is None:
            if trainer is not None:
                trainer.save()
            return []
        if trainer is None:
            trainer = self._trainers[lesson.model] = self._begin(lesson.model)
        return [self._message(said) for said in trainer.apply(lesson.ready)]

    def _fitting(self, place: Place, path: Path) -> Place:
        start = self._start()
        for key, found, configured in (
            ("topics.examples.partitions", place.positions, start.positions),
            ("das.shards", place.applied, start.applied),
        ):
            if len(found) != len(configured):
                raise SettingsError(
                    f"{key} = {len(configured)} must be {len(found)}, as in {path}; "
                    "a run keeps its shards and partitions"
                )
        return place

    def _start(self) -> Place:
        topic = self._settings.topics.examples
        return Place.start(topic.partitions, self._settings.das.shards)

    def _begin(self, model: str) -> Trainer:
        course = self._courses[model]
        store = SnapshotStore(store_path(self._settings, self._folder), self._keep(course))
        bucket_ms = self._settings.das.bucket_ms
        quiet = None if self._settings.as_of else QuietStream(course.every_ms, bucket_ms)
        gate, start = self._settings.store.gate, self._start()
        return Trainer(course, store, gate, self._folder, start, quiet)

    def _keep(self, course: Course) -> int:
        """Versions to keep; as_of asks for old ones, at most so far back."""
        keep, teacher = self._settings.store.keep, self._settings.teacher
        if course.teaches and self._settings.as_of:
            return max(keep, math.ceil(teacher.lag_ms / teacher.snapshot_every_ms) + 3)
        return keep

    def _message(self, said: Announcement) -> Message:
        key = said.model.encode()
        partition = xxhash.xxh64_intdigest(key) % self._settings.topics.snapshots.partitions
        return str(partition), (key, json.dumps(asdict(said)).encode(), 1)


def build(name: str, settings: Settings, folder: RunFolder, courses: Sequence[Course]) -> Dataflow:
    """The dataflow from examples to snapshots of some models."""
    school = School(settings, folder, courses)
    flow = Dataflow(name)
    lessons = op.input("examples", flow, school.source())  # Lesson
    messages = op.flat_map("learn", lessons, school.learn)  # ("partition", (model, bytes, 1))
    op.output("snapshots", messages, TopicSink(settings, settings.topics.snapshots))
    return flow


def run(flow: Dataflow, placement: Placement) -> None:
    """Train until the log has ended or a signal asks to stop; bit for bit on one thread a model."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    run_flow(flow, placement, recovery=None, epoch_s=EPOCH_S)
