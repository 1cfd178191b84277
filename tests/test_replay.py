"""Replays on a real Apache Kafka: order, end marks, speed, and every broken message found."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import polars as pl
import pyarrow as pa
import pytest

from flows.datasets import feed
from flows.datasets.market import Market
from flows.datasets.replay import Clock, Progress, replay, sliced
from flows.event_settings import Noise
from flows.events.dead_letters import DeadLetters
from flows.events.reader import EventReader
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.kafka_settings import Kafka
from flows.letters.replay import ReplayRefused
from flows.records import END_MS
from flows.registry_settings import SchemaRegistry
from flows.run_folder import RunFolder
from flows.settings import Format, Settings, load

CONFIG = Path(__file__).parents[1] / "configs" / "market.toml"
START_MS = 1_700_000_000_000
NOISE = Noise(
    orphan_labels=0.02,
    repeated_labels=0.05,
    repeated_impressions=0.02,
    late_labels=0.05,
    late_by_s=20,
    malformed=0.02,
)


def settings_of(kafka: str, noise: Noise, format: Format = "json") -> Settings:
    settings = load(CONFIG)
    run = uuid.uuid4().hex[:8]
    names = {k: t.model_copy(update={"name": f"{t.name}_{run}"}) for k, t in settings.topics}
    for key in ("impressions", "labels"):
        names[key] = names[key].model_copy(update={"format": format})
    topics = settings.topics.model_copy(update=names)
    registry = SchemaRegistry(url=f"mock://{run}")
    changed = {
        "kafka": Kafka(bootstrap=kafka),
        "schema_registry": registry,
        "topics": topics,
        "noise": noise,
    }
    return settings.model_copy(update=changed)


def write(settings: Settings, impressions: pa.Table, labels: pa.Table) -> Progress:
    ensure_topics(settings)
    producer = BatchProducer(client_config(settings.kafka))
    return replay(settings, sliced(impressions, labels, 500), producer)


def batches(settings: Settings, which: Literal["impressions", "labels"]) -> Iterator[pa.Table]:
    """All that readers accept of a topic, its dead letters written."""
    producer = BatchProducer(client_config(settings.kafka))
    letters = DeadLetters(producer, settings.topics.dead_letters.name)
    deadline = time.monotonic() + 60
    for partition in range(getattr(settings.topics, which).partitions):
        reader = EventReader(settings, which, partition, None, letters)
        watermark_ms = 0
        while watermark_ms != END_MS and time.monotonic() < deadline:
            batch = reader.read()
            if batch is not None:
                watermark_ms = batch.watermark_ms
                yield batch.table
        assert watermark_ms == END_MS
        reader.flush()
        reader.close()


def dead_letters(settings: Settings, count: int) -> list[tuple[str, bytes]]:
    """Reason and bytes of each dead letter."""
    config = client_config(settings.kafka)
    consumer = PartitionConsumer(config, settings.topics.dead_letters.name, 0, 0)
    found: list[tuple[str, bytes]] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        for message in consumer.poll(1000):
            reason = dict(message.headers() or [])["reason"]
            assert isinstance(reason, bytes)
            found.append((reason.decode(), message.value() or b""))
    consumer.close()
    return found


def frame(tables: Iterator[pa.Table]) -> pl.DataFrame:
    made = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(made, pl.DataFrame)
    return made


@pytest.mark.kafka
def test_nothing_is_written_behind_the_end_of_a_log(kafka: str, tmp_path: Path) -> None:
    settings, folder = settings_of(kafka, Noise()), RunFolder(tmp_path)
    part = sliced(*Market(settings).slice(START_MS, START_MS + 500), 500)
    done = feed.write_events(settings, folder, part, None)
    assert done.impressions > 0
    before, written = ends(settings), (tmp_path / "written.json").read_text()
    assert min(before) > 0
    with pytest.raises(ReplayRefused, match=r"^topic 'impressions_.*' partition 0: .* has ended"):
        feed.write_events(settings, folder, feed.market(settings, 1.0), None)
    assert (ends(settings), (tmp_path / "written.json").read_text()) == (before, written)


def ends(settings: Settings) -> list[int]:
    """Offset behind the last message of each partition of the event topics."""
    found, config = [], client_config(settings.kafka)
    for topic in (settings.topics.impressions, settings.topics.labels):
        for partition in range(topic.partitions):
            consumer = PartitionConsumer(config, topic.name, partition, None)
            found.append(consumer.lag())
            consumer.close()
    return found


@pytest.mark.kafka
@pytest.mark.parametrize("format", get_args(Format))
def test_replay_writes_every_event_in_order(kafka: str, format: Format) -> None:
    settings = settings_of(kafka, Noise(), format)
    impressions, labels = Market(settings).slice(START_MS, START_MS + 3000)
    progress = write(settings, impressions, labels)
    shown, known = frame(batches(settings, "impressions")), frame(batches(settings, "labels"))
    assert (progress.impressions, progress.labels) == (len(shown), len(known))
    for found in (shown, known):
        for _, of_partition in found.group_by("partition", maintain_order=True):
            assert of_partition["ts_ms"].is_sorted()
    written = pl.from_arrow(impressions)
    assert isinstance(written, pl.DataFrame)
    read = shown.select(written.columns).sort("ts_ms", "impression_id")
    assert read.equals(written.sort("ts_ms", "impression_id"))
    assert sorted(known["impression_id"]) == sorted(labels["impression_id"].to_pylist())


@pytest.mark.kafka
@pytest.mark.parametrize("format", ["json", "avro", "protobuf"])
def test_replay_sets_aside_what_is_malformed_or_late_and_nothing_else(
    kafka: str, format: Format
) -> None:
    settings = settings_of(kafka, NOISE, format)
    impressions, labels = Market(settings).slice(START_MS, START_MS + 10_000)
    progress = write(settings, impressions, labels)
    shown, known = frame(batches(settings, "impressions")), frame(batches(settings, "labels"))
    added = progress.added
    assert len(progress.malformed) > 100
    assert len(shown) == progress.impressions == len(impressions) + added["repeated_impressions"]
    late = progress.labels - len(known)
    assert 0 < late <= added["late_labels"]
    letters = dead_letters(settings, len(progress.malformed) + late)
    assert Counter(reason for reason, _ in letters)["late"] == late
    refused = Counter(value for reason, value in letters if reason != "late")
    assert refused == Counter(value for _, value in progress.malformed)


def test_sliced_holds_every_row_once_at_its_time() -> None:
    impressions, labels = Market(load(CONFIG)).slice(START_MS, START_MS + 3000)
    parts = list(sliced(impressions, labels, 700))
    assert sum(len(p.impressions) for p in parts) == len(impressions)
    assert sum(len(p.labels) for p in parts) == len(labels)
    for part, following in pairwise(parts):
        assert part.end_ms == following.start_ms
        times = part.impressions["ts_ms"].to_pylist()
        assert all(part.start_ms <= t < part.end_ms for t in times)


def test_clock_follows_the_speed() -> None:
    began = time.monotonic()
    clock = Clock(speed=100.0)
    assert all(clock.wait(t, t + 1000, lambda: False) for t in range(0, 10_000, 1000))
    assert 0.1 <= time.monotonic() - began < 5


def test_clock_stops_when_asked() -> None:
    assert not Clock(speed=1.0).wait(0, 3_600_000, lambda: True)


def test_replay_refuses_a_speed_of_zero() -> None:
    producer = BatchProducer({"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(ValueError, match="speed must be positive, got 0"):
        replay(load(CONFIG), [], producer, speed=0)
