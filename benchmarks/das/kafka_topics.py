"""The benchmark's events in Kafka: a broker of its own, and topics that are filled beforehand.

Two partitions a topic, unless more are asked for. The predictions stand there as
`flows/fm_inference` writes them: Arrow
messages of the rows of a few thousand impressions, with the teacher's progress behind them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from benchmarks.das import events
from benchmarks.das.part import say
from flows.events.encoding import arrow_events, json_events
from flows.fm_inference import encoded
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import client_config, ensure, ensure_topics, producer_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import OPTIONS
from flows.records import (
    END_HEADER,
    END_MS,
    ExampleHeader,
    decode,
    prediction_schema,
    shard_of,
)
from flows.settings import Settings, Topic

PARTITIONS = 2
JSON_PREDICTIONS = "predictions"
"""Topic of the predictions for who reads no Arrow."""
CHUNK = 100_000
MICRO_BATCH = 8192
"""Impressions of a partition that the teacher scores together."""
FLUSH_S = 120.0
MOST_MESSAGES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """What stands in the topics."""

    impressions: int
    labels: int

    @property
    def num_events(self) -> int:
        """Of all three inputs."""
        return 2 * self.impressions + self.labels


@contextmanager
def broker() -> Iterator[tuple[EmbeddedKafka, Path]]:
    """An Apache Kafka for one part of the benchmark, and a folder for runs; gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="kafka-", ignore_cleanup_errors=True) as name,
        EmbeddedKafka(Path(name) / "kafka") as kafka,
    ):
        yield kafka, Path(name) / "runs"


def settings_for(
    bootstrap: str,
    name: str,
    window_s: float,
    das: dict[str, Any] | None = None,
    *,
    form: str = "json",
    live: bool = False,
    partitions: int = PARTITIONS,
) -> Settings:
    """Configuration of one run: inputs shared by all runs on a broker, outputs of its own.

    Args:
        bootstrap: of the broker.
        name: of the run.
        window_s: of the one task.
        das: settings of the join that differ from the defaults.
        form: of impressions and labels.
        live: the wall clock may end a wait.
        partitions: of each topic.
    """
    raw = events.settings().model_dump()
    raw["tasks"] = [{"name": "click", "window_s": window_s}]
    raw["kafka"] = {"bootstrap": bootstrap}
    raw["teacher"] = {"version": "newest" if live else "as_of"}
    raw["das"] = {"recovery_every_s": 10.0, "repeat_horizon_s": window_s, **(das or {})}
    inputs = ("impressions", "labels", "fm_predictions")
    raw["topics"] = {
        **{topic: {"name": topic, "partitions": partitions} for topic in inputs},
        **{t: {"name": t, "partitions": partitions, "format": form} for t in inputs[:2]},
        "examples": {"name": f"examples-{name}", "partitions": partitions},
        "dead_letters": {"name": f"dead_letters-{name}", "partitions": 1},
    }
    found = Settings.model_validate(raw)
    ensure_topics(found)
    return found


def drop_examples(settings: Settings) -> None:
    """Delete what a run has written: a dozen runs would fill a disk."""
    topic, admin = settings.topics.examples.name, AdminClient(client_config(settings.kafka))
    admin.delete_topics([topic])[topic].result()


def fill(settings: Settings, rows: int, *, for_flink: bool = False) -> Filled:
    """Write the events of `rows` impressions, and the ends of the logs.

    Args:
        settings: of any run on the broker.
        rows: number of impressions.
        for_flink: write the predictions as JSON too, to the topic `JSON_PREDICTIONS`.
    """
    if for_flink:
        partitions = settings.topics.impressions.partitions
        ensure(settings.kafka, [Topic(name=JSON_PREDICTIONS, partitions=partitions)])
    say(f"writing {rows:,} impressions, their labels and predictions to Kafka")
    writer = Writer(settings)
    times_N, labels = events.times(rows)
    for start in range(0, rows, CHUNK):
        writer.impressions(events.impressions(start, times_N[start : start + CHUNK]))
        predictions = events.predictions(start, times_N[start : start + CHUNK])
        writer.predictions(predictions)
        if for_flink:
            writer.json_predictions(predictions)
    writer.labels(labels.drop("shown_ms"))
    writer.end()
    say("written")
    return Filled(impressions=rows, labels=labels.height)


class Writer:
    """Writes events: the first of the stream to partition 0, the next to 1, and so on in turns."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._form = settings, settings.topics.impressions.format
        self._producer = Producer({**producer_config(settings.kafka), **OPTIONS})
        self._schema = prediction_schema(settings)
        self._partitions = settings.topics.impressions.partitions
        self._offsets = [0] * self._partitions  # in impressions

    def impressions(self, found: pl.DataFrame) -> None:
        """Write impressions."""
        self._events(self._settings.topics.impressions.name, found)

    def labels(self, found: pl.DataFrame) -> None:
        """Write labels."""
        self._events(self._settings.topics.labels.name, found)

    def json_predictions(self, found: pl.DataFrame) -> None:
        """Write predictions as JSON, one a message."""
        self._events(JSON_PREDICTIONS, found)

    def predictions(self, found: pl.DataFrame, progress_ms: int | None = None) -> None:
        """Write predictions, and how far they go: to the last of them, if not said otherwise."""
        for partition in range(self._partitions):
            mine = found[partition :: self._partitions]
            for start in range(0, max(1, mine.height), MICRO_BATCH):
                self._batch(partition, mine[start : start + MICRO_BATCH], progress_ms)
        self._wait()

    def end(self) -> None:
        """Write the ends of all logs."""
        topics = self._settings.topics
        for topic in (topics.impressions, topics.labels):
            for partition in range(self._partitions):
                headers: dict[str, str | bytes | None] = {END_HEADER: b""}
                self._producer.produce(topic.name, None, partition=partition, headers=headers)
        for partition in range(self._partitions):
            self._progress(self._schema.empty_table(), partition, END_MS)
        self._wait()

    def _events(self, topic: str, found: pl.DataFrame) -> None:
        for partition in range(self._partitions):
            mine = found[partition :: self._partitions].to_arrow()
            if self._form == "json":
                values = json_events(mine)
            else:
                tables = (mine.slice(i, MICRO_BATCH) for i in range(0, len(mine), MICRO_BATCH))
                values = [arrow_events(table) for table in tables]
            for value in values:
                self._send(topic, value, partition)
        self._wait()

    def _batch(self, partition: int, found: pl.DataFrame, progress_ms: int | None) -> None:
        at = self._offsets[partition]
        self._offsets[partition] += found.height
        offset_N = np.arange(at, at + found.height)
        places = {"offset": offset_N, "index": np.zeros(found.height, dtype=np.int32)}
        if self._form != "json":
            places = {"offset": offset_N // MICRO_BATCH, "index": offset_N % MICRO_BATCH}
        columns = {**dict(zip(found.columns, found.get_columns(), strict=True)), **places}
        columns["partition"] = np.full(found.height, partition)
        rows = pl.DataFrame(columns).select(self._schema.names).to_arrow().cast(self._schema)
        if progress_ms is None:
            progress_ms = int(rows["ts_ms"][-1].as_py())
        self._progress(rows, partition, progress_ms)

    def _progress(self, rows: pa.Table, partition: int, progress_ms: int) -> None:
        topic = self._settings.topics.fm_predictions.name
        to_N = shard_of(rows["impression_id"], self._settings.das.shards) % self._partitions
        for to in range(self._partitions):
            for value, _ in encoded(rows.filter(pa.array(to_N == to)), partition, progress_ms):
                self._send(topic, value, to)

    def _send(self, topic: str, value: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce(topic, value, partition=partition)
                return
            except BufferError:
                self._producer.poll(0.05)

    def _wait(self) -> None:
        waiting = self._producer.flush(FLUSH_S)
        if waiting:
            raise RuntimeError(f"{waiting} messages without acknowledgement after {FLUSH_S:.0f} s")


class Examples:
    """The examples of a run, as they come."""

    def __init__(self, settings: Settings) -> None:
        """Begin at the oldest; the topic must exist."""
        name, config = settings.topics.examples.name, client_config(settings.kafka)
        partitions = range(settings.topics.examples.partitions)
        self._consumers = [PartitionConsumer(config, name, p, None) for p in partitions]
        self._totals: dict[int, int] = {}  # number of the next example of each shard

    def read(self) -> list[tuple[int, pa.Table, ExampleHeader]]:
        """What has come: time of the message in ms, rows, header."""
        found = []
        for consumer in self._consumers:
            for message in consumer.poll(MOST_MESSAGES):
                rows, header = decode(message.value() or b"")
                place = ExampleHeader(**header)  # type: ignore[typeddict-item]
                found.append((message.timestamp()[1], rows, place))
        return found

    def is_new(self, rows: pa.Table, header: ExampleHeader) -> bool:
        """Whether a message holds an example that none held before it was asked of."""
        known = self._totals.get(header["shard"], 0)
        end = header["first"] + rows.num_rows
        self._totals[header["shard"]] = max(known, end)
        return bool(end > known)

    def read_to_end(self) -> int:
        """Know all examples that stand there now; how many there are."""
        while not all([consumer.at_end_now() for consumer in self._consumers]):
            for _, rows, header in self.read():
                self.is_new(rows, header)
        return sum(self._totals.values())

    def close(self) -> None:
        """Leave the broker."""
        for consumer in self._consumers:
            consumer.close()
