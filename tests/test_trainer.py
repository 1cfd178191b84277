"""A trainer that is stopped anywhere and goes on from its checkpoint ends with the same bits."""

from __future__ import annotations

import json
import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from flows import vm_training
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.learning.course import Course, student_course, teacher_course
from flows.learning.example_reader import ExampleReader, Place
from flows.learning.trainer import Trainer, checkpoint_path
from flows.learning.training_rows import RowReader
from flows.records import END_MS, ExampleHeader, encode, example_schema
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Gate, Settings
from models import checkpoint
from models.encoding import Encoder
from onnx_export.draft import Draft
from onnx_export.manifest import Manifest
from onnx_export.session import Scorer
from onnx_export.store import SnapshotStore

SHARDS = 3
BUCKET_MS = 1000
MINUTE_MS = 60_000
WINDOWS_S = {"click": 60, "buy": 600}


@pytest.fixture(scope="module")
def settings() -> Settings:
    network = {"dim": 4, "hidden": [8], "table_rows": 256}
    return Settings.model_validate(
        {
            "domains": ["feed", "video"],
            "features": [
                {"name": "user_id", "kind": "categorical"},
                {"name": "item", "kind": "categorical", "dtype": "int"},
                {"name": "price", "kind": "numeric"},
                {"name": "history", "kind": "sequence", "max_length": 3},
            ],
            "tasks": [
                {"name": name, "window_s": window, "oracle": f"p_{name}"}
                for name, window in WINDOWS_S.items()
            ],
            "students": [
                {
                    "name": "feed_late",
                    "domains": ["feed"],
                    "tasks": ["click", "buy"],
                    "network": network,
                    "learning": {"batch": 16},
                    "snapshot_every_s": 60,
                    "warmup_examples": 50,
                },
                {
                    "name": "alone",
                    "tasks": ["click"],
                    "network": network,
                    "learning": {"batch": 7},
                    "snapshot_every_s": 120,
                    "warmup_examples": 0,
                    "shadow": False,
                },
            ],
            "teacher": {
                "network": network,
                "learning": {"batch": 32},
                "snapshot_every_s": 60,
                "warmup_examples": 100,
            },
            "das": {"shards": SHARDS, "bucket_s": BUCKET_MS / 1000},
        }
    )


@pytest.fixture(scope="module")
def examples(settings: Settings) -> pa.Table:
    """Twenty minutes of examples: both windows, with numbers in the order of their shards."""
    rng = np.random.default_rng(5)
    num = 900
    ts = np.sort(rng.integers(0, 20 * MINUTE_MS, num))
    rows: list[dict[str, Any]] = []
    for i in range(num):
        shard, logit = int(rng.integers(SHARDS)), float(rng.normal())
        covered = ts[i] > 4 * MINUTE_MS and rng.random() < 0.9
        for task, window in WINDOWS_S.items():
            row: dict[str, Any] = {
                "impression_id": f"i{i}",
                "domain": "feed" if rng.random() < 0.7 else "video",
                "ts_ms": int(ts[i]),
                "user_id": f"u{rng.integers(20)}",
                "item": int(rng.integers(50)) if rng.random() < 0.9 else None,
                "price": float(rng.normal()),
                "history": [f"h{rng.integers(9)}" for _ in range(rng.integers(5))],
                "fm_version": 1 if covered else None,
                "closed_ts_ms": int(ts[i]) + window * 1000,
                "correction": 0,
                "shard": shard,
            }
            for other in WINDOWS_S:
                mine = other == task
                row[f"label_{other}"] = int(rng.random() < 0.3) if mine else None
                row[f"mask_{other}"] = mine
                row[f"fm_logit_{other}"] = logit if mine and covered else None
                row[f"p_{other}"] = 0.3
            rows.append(row)
    rows.sort(key=lambda r: (r["closed_ts_ms"] // BUCKET_MS, r["closed_ts_ms"], r["impression_id"]))
    numbers = [0] * SHARDS
    for row in rows:
        row["number"] = numbers[row["shard"]]
        numbers[row["shard"]] += 1
    return pa.Table.from_pylist(rows, schema=example_schema(settings))


def course_of(settings: Settings, model: str) -> Course:
    return (
        teacher_course(settings)
        if model == "fm"
        else student_course(settings, settings.student(model))
    )


class _Run:
    """One trainer over the whole log, in random steps, killed and started again."""

    def __init__(self, settings: Settings, model: str, examples: pa.Table, folder: Path) -> None:
        torch.set_num_threads(1)
        self.settings, self.model, self.examples = settings, model, examples
        self.folder = RunFolder(folder)
        self.store = SnapshotStore(self.folder.store, durable=False)

    def trainer(self) -> Trainer:
        start = Place.start(1, SHARDS)
        course = course_of(self.settings, self.model)
        return Trainer(course, self.store, Gate(), self.folder, start)

    def reader(self, place: Place) -> ExampleReader:
        course = course_of(self.settings, self.model)
        keep = RowReader(Encoder(course.encoding), course.tasks, course.domains).keep
        reader = ExampleReader(place, BUCKET_MS, example_schema(self.settings), keep)
        shards = self.examples["shard"].to_numpy()
        for shard, applied in enumerate(place.applied):
            rows = self.examples.filter(pa.array(shards == shard)).slice(applied)
            reader.put(0, shard, rows, header(shard, applied, None, None))
        return reader

    def go(self, marks_ms: list[int], restart: Callable[[], bool]) -> Trainer:
        """Hand out buckets up to each mark, then up to the end."""
        trainer = self.trainer()
        reader = self.reader(trainer.place)
        todo = [*marks_ms, END_MS]
        while todo:
            if todo[0] > trainer.place.through_ms:
                self.mark(reader, todo[0])
                ready = reader.take()
                assert ready is not None
                trainer.apply(ready)
            mark = todo.pop(0)
            if restart() and mark < END_MS:
                trainer.save()
            if restart():  # from the last checkpoint, whenever that was
                trainer = self.trainer()
                reader = self.reader(trainer.place)
                todo = [m for m in [*marks_ms, END_MS] if m > trainer.place.through_ms]
        return trainer

    def mark(self, reader: ExampleReader, mark_ms: int) -> None:
        shards = self.examples["shard"].to_numpy()
        for shard in range(SHARDS):
            total = int((shards == shard).sum())
            nothing = self.examples.slice(0, 0)
            reader.put(0, 99, nothing, header(shard, total, mark_ms, total))

    def versions(self) -> dict[int, Any]:
        found = self.store.versions(self.model)
        return {v: self.store.manifest(self.model, v).content() for v in found}

    def weights(self) -> dict[str, torch.Tensor]:
        tensors, _ = checkpoint.load(checkpoint_path(self.folder, self.model))
        return tensors

    def quality(self) -> dict[str, Any]:
        path = self.folder.quality / f"{self.model}.json"
        loaded: dict[str, Any] = json.loads(path.read_bytes())
        return loaded


def header(shard: int, first: int, through_ms: int | None, total: int | None) -> ExampleHeader:
    return ExampleHeader(shard=shard, first=first, through_ms=through_ms, total=total)


@pytest.fixture(scope="module")
def reference(
    settings: Settings,
    examples: pa.Table,
    tmp_path_factory: pytest.TempPathFactory,
    exported: Path,
) -> dict[str, _Run]:
    """Each model trained in one go."""
    runs = {}
    for model in ("fm", "feed_late", "alone"):
        runs[model] = _Run(settings, model, examples, tmp_path_factory.mktemp(model))
        shutil.copytree(exported, runs[model].store.templates)  # an export takes seconds
        runs[model].go([], lambda: False)
        shutil.copytree(runs[model].store.templates, exported, dirs_exist_ok=True)
    return runs


@pytest.mark.parametrize("model", ["fm", "feed_late"])
@pytest.mark.parametrize("seed", [1, 2])
def test_restarted_trainer_ends_with_the_same_bits(
    settings: Settings,
    examples: pa.Table,
    reference: dict[str, _Run],
    tmp_path: Path,
    model: str,
    seed: int,
) -> None:
    rng = random.Random(seed)
    run = _Run(settings, model, examples, tmp_path)
    shutil.copytree(reference[model].store.templates, run.store.templates)
    marks = sorted(rng.sample(range(0, 31 * MINUTE_MS, BUCKET_MS), 15))
    run.go(marks, lambda: rng.random() < 0.2)
    expected = reference[model]
    assert run.versions() == expected.versions()
    assert len(run.versions()) > 5
    weights, expected_weights = run.weights(), expected.weights()
    assert weights.keys() == expected_weights.keys()
    differing = [n for n, t in weights.items() if not torch.equal(t, expected_weights[n])]
    # Rankings count; their sums, which nothing reads, depend on how rows were gathered.
    assert [n for n in differing if not (":ranking/" in n and n.endswith("/sums"))] == []
    assert run.quality() == expected.quality()


def test_trainer_learns_every_row_of_its_domains(
    settings: Settings, examples: pa.Table, reference: dict[str, _Run]
) -> None:
    _, meta = checkpoint.load(checkpoint_path(reference["feed_late"].folder, "feed_late"))
    domains = examples["domain"].to_pylist()
    assert meta["num_learned"] == domains.count("feed")
    _, meta = checkpoint.load(checkpoint_path(reference["fm"].folder, "fm"))
    assert meta["num_learned"] == len(domains)
    assert meta["place"]["through_ms"] == END_MS


def test_trainer_publishes_at_boundaries_after_the_warm_up(reference: dict[str, _Run]) -> None:
    run = reference["feed_late"]
    for version, manifest in run.versions().items():
        assert version % MINUTE_MS == 0
        assert manifest.num_examples >= 50
        assert manifest.newest_example_ms < version
        last = version == max(run.versions())
        assert last or manifest.num_examples % 16 == 0  # the rest of a batch is carried over


def test_frontier_covers_everything_at_the_end(reference: dict[str, _Run]) -> None:
    assert reference["fm"].store.frontier("fm") == END_MS
    assert reference["feed_late"].store.frontier("feed_late") < 0


class _WatchedStore(SnapshotStore):
    """Notes what was announced before each version."""

    too_late: list[int]

    def publish(self, draft: Draft, manifest: Manifest) -> Manifest:
        """Publish, and note a version that was said to come no more."""
        if manifest.version <= self.frontier(manifest.model):
            self.too_late.append(manifest.version)
        return super().publish(draft, manifest)


def test_no_version_appears_behind_the_frontier(
    settings: Settings, examples: pa.Table, reference: dict[str, _Run], tmp_path: Path
) -> None:
    run = _Run(settings, "fm", examples, tmp_path)
    shutil.copytree(reference["fm"].store.templates, run.store.templates)
    run.store = store = _WatchedStore(run.folder.store, durable=False)
    store.too_late = []
    run.go([10 * MINUTE_MS], lambda: False)
    assert run.versions() == reference["fm"].versions()
    assert store.too_late == []


def test_quality_measures_what_the_snapshots_gave_at_impression_time(
    examples: pa.Table, reference: dict[str, _Run]
) -> None:
    """Score each row again by the snapshot files of the store."""
    run = reference["alone"]
    expected_n, expected_loss = 0, 0.0
    versions = sorted(run.versions())
    clicks = examples.filter(examples["mask_click"])
    ts = clicks["ts_ms"].to_numpy()
    served = np.searchsorted(versions, ts, side="right") - 1
    for position, version in enumerate(versions):
        rows = clicks.filter(pa.array(served == position))
        if rows.num_rows:
            scorer = Scorer.open(run.store.path("alone", version))
            logits = scorer.score_columns(rows)[:, 0].astype(np.float64)
            labels = rows["label_click"].to_numpy()
            expected_loss += float((np.logaddexp(0, logits) - labels * logits).sum())
            expected_n += rows.num_rows
    intervals = run.quality()["intervals"]
    assert sum(i["n"] for i in intervals) == expected_n
    assert sum(i["student"] for i in intervals) == pytest.approx(expected_loss, rel=1e-5)
    assert all(i["shadow"] is None for i in intervals)


@pytest.mark.kafka
def test_flow_trains_all_students_from_the_topic_and_announces_them(
    settings: Settings,
    examples: pa.Table,
    reference: dict[str, _Run],
    kafka: str,
    tmp_path: Path,
) -> None:
    settings = on_broker(settings, kafka)
    write(settings, examples)
    folder = RunFolder(tmp_path)
    shutil.copytree(reference["alone"].store.templates, folder.store / "templates")
    for _ in range(2):  # the second start finds nothing to do
        vm_training.run(settings, folder, Placement())
    store = SnapshotStore(folder.store)
    announced = read(settings)
    for model in ("alone", "feed_late"):
        versions = sorted(reference[model].versions())
        assert store.versions(model) == versions[-settings.store.keep :]
        assert [said["version"] for said in announced if said["model"] == model] == versions
        newest = store.manifest(model, versions[-1]).content()
        assert newest == reference[model].versions()[versions[-1]]


@pytest.mark.kafka
def test_new_model_learns_what_is_retained_as_if_it_were_all(
    settings: Settings,
    examples: pa.Table,
    reference: dict[str, _Run],
    kafka: str,
    tmp_path: Path,
) -> None:
    settings, templates = on_broker(settings, kafka), reference["alone"].store.templates
    write(settings, examples)
    places = [TopicPartition(settings.topics.examples.name, p, n) for p, n in ((0, 30), (1, 20))]
    admin = AdminClient(client_config(settings.kafka))
    for deleted in admin.delete_records(places).values():
        deleted.result()
    bucket, shard = (examples[name].to_numpy() for name in ("closed_ts_ms", "shard"))
    bucket = bucket // BUCKET_MS
    first = max(bucket[shard == s][7 * n] for s, n in ((0, 30), (1, 20)))  # messages of seven rows
    kept = examples.filter(pa.array(bucket > first))
    assert 0 < kept.num_rows < examples.num_rows

    folder = RunFolder(tmp_path / "flow")
    shutil.copytree(templates, folder.store / "templates")
    vm_training.run(settings, folder, Placement())
    for model in ("alone", "feed_late"):
        expected = _Run(settings, model, kept, tmp_path / model)
        shutil.copytree(templates, expected.store.templates)
        expected.go([], lambda: False)
        tensors, meta = checkpoint.load(checkpoint_path(folder, model))
        weights = expected.weights()
        assert [n for n in weights if not n.endswith("/sums")] == [
            n for n in tensors if not n.endswith("/sums") and torch.equal(tensors[n], weights[n])
        ]
        assert meta["place"]["applied"] == [int((shard == s).sum()) for s in range(SHARDS)]


def on_broker(settings: Settings, kafka: str) -> Settings:
    """The same with topics of its own that exist."""
    run = uuid.uuid4().hex[:8]
    topics = {
        key: {**topic.model_dump(), "name": f"{topic.name}-{run}"} for key, topic in settings.topics
    }
    raw = {**settings.model_dump(), "kafka": {"bootstrap": kafka}, "topics": topics}
    found = Settings.model_validate(raw)
    ensure_topics(found)
    return found


def write(settings: Settings, examples: pa.Table) -> None:
    """Write each shard's rows in messages of seven, with the end mark behind the last."""
    producer = BatchProducer(client_config(settings.kafka))
    topic = settings.topics.examples
    shards = examples["shard"].to_numpy()
    for shard in range(SHARDS):
        rows = examples.filter(pa.array(shards == shard))
        for first in range(0, rows.num_rows, 7):
            last = first + 7 >= rows.num_rows
            place = header(shard, first, END_MS if last else None, rows.num_rows if last else None)
            value = encode(rows.slice(first, 7), place)
            producer.send(topic.name, value, partition=shard % topic.partitions)
    producer.flush()


def read(settings: Settings) -> list[dict[str, Any]]:
    """Everything announced, in order."""
    topic = settings.topics.snapshots.name
    consumer = PartitionConsumer(client_config(settings.kafka), topic, 0, 0)
    found: list[dict[str, Any]] = []
    while not consumer.at_end():
        found += [json.loads(message.value() or b"") for message in consumer.poll(100)]
    consumer.close()
    return found
