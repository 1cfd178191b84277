"""Examples of a real Apache Kafka as one model reads them, where some of them are gone."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from flows.kafka.client import client_config
from flows.kafka.lost_offsets import OffsetLost
from flows.kafka.producer import BatchProducer
from flows.learning import gaps
from flows.learning.example_reader import Place
from flows.learning.example_source import Lesson, ModelExamples
from flows.learning.gaps import ExamplesMissing
from flows.records import END_MS, ExampleHeader, encode, example_schema
from flows.settings import Settings
from monitoring.metrics import TRAIN_GAPS, TRAIN_REPEATS

pytestmark = pytest.mark.kafka


def row(shard: int, number: int) -> dict[str, object]:
    return {
        "impression_id": f"i{number}",
        "domain": "feed",
        "ts_ms": 1000 * number,
        "closed_ts_ms": 1000 * number,
        "correction": 0,
        "shard": shard,
        "number": number,
    }


def write(settings: Settings, producer: BatchProducer, shard: int, numbers: range) -> None:
    """A message a row, each with a mark; behind the last row nothing comes."""
    topic, schema = settings.topics.examples, example_schema(settings)
    for number in numbers:
        last = number == 9
        through_ms = END_MS if last else 1000 * number + 1000
        header = ExampleHeader(shard=shard, first=number, through_ms=through_ms, total=number + 1)
        value = encode(pa.Table.from_pylist([row(shard, number)], schema), header)
        producer.send(topic.name, value, partition=shard % topic.partitions)
    producer.flush()


def delete_before(settings: Settings, offsets: list[int]) -> None:
    """As retention does, offsets by partition."""
    topic = settings.topics.examples.name
    places = [TopicPartition(topic, p, offset) for p, offset in enumerate(offsets)]
    admin = AdminClient(client_config(settings.kafka))  # its futures end only while it is there
    for deleted in admin.delete_records(places).values():
        deleted.result()


def learned(lessons: list[Lesson]) -> list[tuple[int, int]]:
    """Number and shard of each row."""
    tables = [lesson.ready.table for lesson in lessons if lesson.ready is not None]
    rows = pa.concat_tables(tables).select(["number", "shard"]).to_pylist()
    return [(row["number"], row["shard"]) for row in rows]


def everything(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(table.num_rows, dtype=bool)


def lessons(source: ModelExamples, enough: Callable[[list[Lesson]], bool]) -> list[Lesson]:
    found: list[Lesson] = []
    while not enough(found):
        found += source.next_batch()
    return found


def test_source_stops_at_a_gap_and_goes_on_once_it_is_filled(
    kafka_settings: Settings, producer: BatchProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "WAIT_S", 0.2)
    topic = kafka_settings.topics.examples
    start = Place.start(topic.partitions, kafka_settings.das.shards)
    write(kafka_settings, producer, 0, range(10))
    write(kafka_settings, producer, 1, range(4))
    write(kafka_settings, producer, 1, range(7, 10))
    source = ModelExamples(kafka_settings, "filled", start, everything)
    before, repeats = (
        TRAIN_GAPS.labels("filled")._value.get(),
        TRAIN_REPEATS.labels("filled")._value.get(),
    )
    with pytest.raises(ExamplesMissing, match=r"shard 1 goes on at number 7, expected 4"):
        lessons(source, lambda _: False)
    source.close()
    assert TRAIN_GAPS.labels("filled")._value.get() == before + 1
    assert TRAIN_REPEATS.labels("filled")._value.get() == repeats

    write(kafka_settings, producer, 1, range(10))
    source = ModelExamples(kafka_settings, "filled", start, everything)
    found = lessons(source, at_end)
    source.close()
    assert learned(found) == [(n, s) for n in range(10) for s in (0, 1)]


def at_end(found: list[Lesson]) -> bool:
    return bool(found) and found[-1].ready is None


@pytest.mark.parametrize("version", ["as_of", "newest"])
def test_new_model_begins_with_the_first_bucket_that_is_retained_of_all_shards(
    kafka_settings: Settings,
    producer: BatchProducer,
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    caplog.set_level(logging.INFO)
    raw = kafka_settings.model_dump()
    raw["teacher"]["version"] = version
    settings = Settings.model_validate(raw)
    for shard in (0, 1):
        write(settings, producer, shard, range(10))
    delete_before(settings, [2, 5])
    start = Place.start(settings.topics.examples.partitions, settings.das.shards)
    source = ModelExamples(settings, "late", start, everything)
    found = lessons(source, at_end)
    source.close()
    assert learned(found) == [(n, s) for n in range(6, 10) for s in (0, 1)]
    said = [r.getMessage() for r in caplog.records if r.name == "flows.learning.example_source"]
    assert "late has no checkpoint, and the first examples of topic" in said[0]
    assert "at offsets 2, 5; `exfm backfill --topic NAME` makes them again" in said[0]
    assert said[1] == (
        "late learns from event time 1970-01-01 00:00:06 on: from there all shards are complete; "
        "their first numbers are 2, 5"
    )


def test_model_with_a_checkpoint_refuses_a_gap_behind_its_place(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    for shard in (0, 1):
        write(kafka_settings, producer, shard, range(10))
    delete_before(kafka_settings, [2, 5])
    place = Place(positions=(4, 4), applied=(4, 4), through_ms=4000)
    with pytest.raises(OffsetLost) as error:
        ModelExamples(kafka_settings, "behind", place, everything)
    for part in (
        "partition 1: offset 4 is lost: the partition holds offsets 5 to 10",
        "behind leaves out no example behind its checkpoint",
        "`exfm backfill --topic NAME` makes them again",
        "without its checkpoint (checkpoints/behind of the run) it begins anew",
    ):
        assert part in str(error.value)
    place = Place(positions=(5, 5), applied=(5, 5), through_ms=5000)
    source = ModelExamples(kafka_settings, "behind", place, everything)
    assert learned(lessons(source, at_end)) == [(n, s) for n in range(5, 10) for s in (0, 1)]
    source.close()
