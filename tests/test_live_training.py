"""Live training: snapshots of quiet streams, and shards that are passed over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from prometheus_client.registry import REGISTRY

from flows import vm_training
from flows.kafka.client import client_config
from flows.kafka.producer import BatchProducer
from flows.learning.course import student_course
from flows.learning.example_reader import Place, Ready
from flows.learning.quiet import QuietStream
from flows.learning.trainer import Trainer, checkpoint_path
from flows.learning.training import School
from flows.records import END_MS, ExampleHeader, encode, example_schema
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Gate, Settings, SettingsError
from models import checkpoint
from onnx_export.store import SnapshotConflict, SnapshotStore
from tests.hand_clock import Clock

MODEL = "search_early"
START_MS = 1_000_000
WINDOW_MS = 10_000


@pytest.fixture(name="settings")
def give_settings(tiny_settings: Settings) -> Settings:
    torch.set_num_threads(1)
    return live(tiny_settings)


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


def live(settings: Settings) -> Settings:
    raw = settings.model_dump()
    raw["teacher"]["version"] = "newest"
    raw["das"]["shard_grace_s"] = 0.2
    return Settings.model_validate(raw)


def rows_of(
    settings: Settings, num: int, closed_ms: tuple[int, int], first: int = 0, shard: int = 0
) -> pa.Table:
    """Examples of `search` with a click window that closed evenly within a span."""
    rng = np.random.default_rng(first)
    closed = np.linspace(*closed_ms, num, endpoint=False).astype(np.int64)
    columns: dict[str, Any] = {
        "impression_id": [f"i{shard}-{first + i}" for i in range(num)],
        "domain": ["search"] * num,
        "ts_ms": closed - WINDOW_MS,
        "user_id": rng.integers(0, 9, num),
        "device": [f"d{i}" for i in rng.integers(0, 3, num)],
        "price": rng.random(num),
        "label_click": rng.integers(0, 2, num),
        "mask_click": [True] * num,
        "mask_conversion": [False] * num,
        "closed_ts_ms": closed,
        "correction": [0] * num,
        "shard": [shard] * num,
        "number": range(first, first + num),
    }
    schema = example_schema(settings)
    arrays = [pa.array(columns.get(f.name, [None] * num), f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def ready(table: pa.Table, through_ms: int) -> Ready:
    return Ready(table=table, place=Place(positions=(0, 0), applied=(0, 0), through_ms=through_ms))


def trainer_of(
    settings: Settings, store: SnapshotStore, folder: Path, clock: Clock | None
) -> Trainer:
    course = student_course(settings, settings.student(MODEL))
    quiet = QuietStream(course.every_ms, settings.das.bucket_ms, clock) if clock else None
    return Trainer(course, store, Gate(), RunFolder(folder), Place.start(2, 2), quiet)


def test_quiet_stream_is_published_by_the_clock_without_cutting_a_batch(
    settings: Settings, store: SnapshotStore, tmp_path: Path, clock: Clock
) -> None:
    trainer = trainer_of(settings, store, tmp_path, clock)
    stopped_ms = START_MS + 5000
    rows = rows_of(settings, 40, (START_MS, stopped_ms))
    assert trainer.apply(ready(rows, stopped_ms)) == []
    pulse = ready(rows.slice(0, 0), stopped_ms)
    clock.now_s = 9.9
    assert trainer.apply(pulse) == []
    clock.now_s = 10.0
    announced = trainer.apply(pulse)
    assert [said.version for said in announced] == store.versions(MODEL) == [stopped_ms]
    assert store.manifest(MODEL, stopped_ms).num_examples == 32
    clock.now_s = 100.0
    assert trainer.apply(pulse) == []  # nothing was learned since

    trainer = trainer_of(settings, store, tmp_path, clock)  # killed: it goes on from there
    assert trainer.place.through_ms == stopped_ms
    assert trainer.apply(pulse) == []
    served = rows_of(settings, 30, (stopped_ms, stopped_ms + 15_000), first=40)
    announced = trainer.apply(ready(served, START_MS + 20_000))
    boundaries = [START_MS + 10_000, START_MS + 20_000]
    assert [said.version for said in announced] == boundaries
    trainer.apply(ready(served.slice(0, 0), END_MS))
    document = json.loads((tmp_path / "quality" / f"{MODEL}.json").read_text())
    after = (served["ts_ms"].to_numpy() >= stopped_ms).sum()
    assert after > 0
    assert sum(interval["n"] for interval in document["intervals"]) == after


def test_stream_of_a_replay_is_never_published_by_the_clock(
    settings: Settings, store: SnapshotStore, tmp_path: Path
) -> None:
    trainer = trainer_of(settings, store, tmp_path, None)
    rows = rows_of(settings, 40, (START_MS, START_MS + 5000))
    for _ in range(3):
        assert trainer.apply(ready(rows.slice(0, 0), START_MS + 5000)) == []
    assert store.versions(MODEL) == []


def test_live_trainer_outlives_a_version_that_it_learned_otherwise(
    settings: Settings, store: SnapshotStore, tmp_path: Path, clock: Clock
) -> None:
    through_ms = START_MS + 10_000
    rows = rows_of(settings, 48, (START_MS, through_ms))
    trainer_of(settings, store, tmp_path / "a", clock).apply(ready(rows, through_ms))
    published = store.manifest(MODEL, through_ms)
    fewer = ready(rows.slice(0, 40), through_ms)
    with pytest.raises(SnapshotConflict, match="other content"):
        trainer_of(settings, store, tmp_path / "b", None).apply(fewer)
    labels = {"model": MODEL, "reason": "conflict"}
    before = REGISTRY.get_sample_value("exfm_snapshot_refused_total", labels) or 0.0
    assert trainer_of(settings, store, tmp_path / "c", clock).apply(fewer) == []
    assert REGISTRY.get_sample_value("exfm_snapshot_refused_total", labels) == before + 1
    assert store.manifest(MODEL, through_ms) == published


def test_checkpoint_of_other_shards_is_refused(settings: Settings, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    place = asdict(Place.start(settings.topics.examples.partitions, 3))
    checkpoint.save(checkpoint_path(folder, MODEL), {}, {"place": place})
    school = School(settings, folder, [student_course(settings, settings.student(MODEL))])
    with pytest.raises(SettingsError, match=r"das\.shards = 2 must be 3, as in .*checkpoint\.pt"):
        school.place(MODEL)


def test_checkpoint_of_another_network_is_refused_by_name(
    settings: Settings, store: SnapshotStore, tmp_path: Path
) -> None:
    trainer_of(settings, store, tmp_path, None).save()
    raw = settings.model_dump()
    raw["students"][1]["network"]["dim"] = 8
    other = Settings.model_validate(raw)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: state of another model"):
        trainer_of(other, store, tmp_path, None)


def counted(metric: str) -> float:
    return REGISTRY.get_sample_value(f"exfm_train_{metric}_total", {"model": MODEL}) or 0.0


def steps(until: Callable[[], bool], within: int = 1000) -> Iterator[int]:
    """Numbers at a steady pace until the claim holds."""
    for step in range(within):
        if until():
            return
        yield step
        threading.Event().wait(0.02)
    raise AssertionError("still not so")


@pytest.mark.kafka
def test_live_flow_passes_over_a_shard_that_straggles(
    kafka_settings: Settings, store: SnapshotStore, tmp_path: Path
) -> None:
    settings = live(kafka_settings)
    left_out, passed_over = counted("left_out"), counted("passed_over")
    written = [0]

    def send(shard: int, table: pa.Table, first: int, through_ms: int) -> None:
        total = first + table.num_rows
        header = ExampleHeader(shard=shard, first=first, through_ms=through_ms, total=total)
        producer.send(settings.topics.examples.name, encode(table, header), partition=shard)
        producer.flush()

    def write() -> None:
        """Shard 0 goes on; shard 1 comes when nobody waits for it any more."""
        for second in steps(lambda: counted("left_out") > left_out):
            span = START_MS + second * 1000, START_MS + second * 1000 + 1000
            send(0, rows_of(settings, 4, span, written[0]), written[0], span[1])
            written[0] += 4
        send(1, rows_of(settings, 5, (START_MS, START_MS + 900), shard=1), 0, END_MS)
        send(0, rows_of(settings, 0, (0, 0)), written[0], END_MS)

    producer = BatchProducer(client_config(settings.kafka))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        vm_training.run(settings, RunFolder(tmp_path), Placement())
        writing.result(timeout=20)
    assert counted("left_out") == left_out + 1
    assert counted("passed_over") == passed_over + 5
    _, meta = checkpoint.load(checkpoint_path(RunFolder(tmp_path), MODEL))
    assert meta["num_learned"] == written[0]
    assert meta["place"]["applied"] == [written[0], 5]
