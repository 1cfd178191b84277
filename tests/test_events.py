"""Impressions and labels read from a real Apache Kafka: rows, watermarks, what is set aside."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Message

from flows.events.dead_letters import REPLAY_OF, DeadLetters
from flows.events.reader import EventBatch, EventReader
from flows.events.rules import impression_rules
from flows.join.read_ahead import ReadAhead
from flows.join.sources import EventPartition
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.records import BEGIN_MS, END_HEADER, END_MS, impression_schema
from flows.settings import Settings
from monitoring.metrics import DEAD_LETTERS, REJECTED, SOURCE_EVENTS, SOURCE_LAG
from tests import raw_producer

pytestmark = pytest.mark.kafka

START_MS = 1_700_000_000_000


def next_batch(reader: EventReader) -> EventBatch:
    return next(batch for batch in iter(reader.read, object()) if batch is not None)


def dead_letters(settings: Settings, count: int) -> list[Message]:
    topic = settings.topics.dead_letters.name
    consumer = PartitionConsumer(client_config(settings.kafka), topic, 0, 0)
    letters = islice(chain.from_iterable(iter(lambda: consumer.poll(100), None)), count)
    try:
        return list(letters)
    finally:
        consumer.close()


def impression(number: int, ts_ms: int) -> bytes:
    event = {"impression_id": f"i-{number}", "domain": "feed", "ts_ms": ts_ms, "user_id": number}
    return json.dumps(event).encode()


LOG: list[bytes | None] = [
    impression(0, START_MS),
    b"broken",
    impression(1, START_MS + 9000),
    impression(2, START_MS + 3000),  # late by 1 s
    impression(3, START_MS + 4000),
    None,
    impression(4, START_MS + 10_000),
]
KEPT = ["i-0", "i-1", "i-3", "i-4"]
ASIDE = {1: "not_json", 3: "late", 5: "empty"}


@pytest.fixture
def written(kafka_settings: Settings, producer: BatchProducer) -> Settings:
    """A log of impressions in partition 1, with its end mark and something behind it."""
    name = kafka_settings.topics.impressions.name
    for value in LOG:
        producer.send(name, value, partition=1)
    producer.send(name, None, partition=1, headers={END_HEADER: b""})
    producer.send(name, impression(9, START_MS), partition=1)
    producer.flush()
    return kafka_settings


def batches(reader: EventReader) -> Iterator[EventBatch]:
    """Batches up to the one that has ended."""
    while True:
        batch = next_batch(reader)
        yield batch
        if batch.ended:
            return


def ids(batch: EventBatch) -> list[str]:
    return [str(i) for i in batch.table["impression_id"].to_pylist()]


@pytest.mark.parametrize("max_batch", [1, 2, 100])
def test_reader_gives_the_same_rows_at_any_batch_and_restart(
    written: Settings, max_batch: int
) -> None:
    das = written.das.model_copy(update={"max_batch": max_batch})
    settings = written.model_copy(update={"das": das})
    state: tuple[int, int] | None = None
    seen: list[str] = []
    watermarks = [BEGIN_MS]
    while watermarks[-1] != END_MS:
        reader = EventReader(settings, "impressions", 1, state, None)
        batch = next_batch(reader)
        seen += ids(batch)
        watermarks.append(batch.watermark_ms)
        assert batch.partition == 1
        assert batch.ended == (batch.watermark_ms == END_MS)
        state = reader.state()
        assert state[0] == batch.position
        reader.close()
    assert seen == KEPT
    assert watermarks == sorted(watermarks)
    if max_batch == 1:
        assert watermarks[-2] == START_MS + 5000
    assert state == (len(LOG) + 1, END_MS)


def test_ended_reader_says_so_again_after_a_restart(written: Settings) -> None:
    reader = EventReader(written, "impressions", 1, None, None)
    for _ in batches(reader):
        pass
    assert (reader.caught_up(), reader.read()) == (True, None)
    again = EventReader(written, "impressions", 1, reader.state(), None)
    batch = again.read()
    assert batch is not None
    assert (batch.ended, batch.watermark_ms, ids(batch)) == (True, END_MS, [])
    assert (again.caught_up(), again.read(), again.state()) == (True, None, reader.state())
    reader.close()
    again.close()


def test_what_is_set_aside_is_counted_and_kept_byte_for_byte(
    written: Settings, producer: BatchProducer
) -> None:
    name = written.topics.impressions.name
    letters = DeadLetters(producer, written.topics.dead_letters.name)
    reader = EventReader(written, "impressions", 1, None, letters)
    assert [i for batch in batches(reader) for i in ids(batch)] == KEPT
    reader.flush()
    reader.close()
    found = {}
    for message in dead_letters(written, len(ASIDE)):
        headers = dict(message.headers() or ())
        assert (headers["topic"], headers["partition"]) == (name.encode(), b"1")
        found[int(headers["offset"] or b"")] = (headers["reason"], message.value())
    assert found == {at: (reason.encode(), LOG[at]) for at, reason in ASIDE.items()}
    counted = {reason: REJECTED.labels(name, reason)._value.get() for reason in ASIDE.values()}
    assert counted == Counter(ASIDE.values())
    assert DEAD_LETTERS.labels(written.topics.dead_letters.name, "late")._value.get() == 1
    assert SOURCE_EVENTS.labels(name)._value.get() == len(LOG)
    assert SOURCE_LAG.labels(name, "1")._value.get() == 0


def test_letter_that_no_topic_takes_is_cut(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    letters = DeadLetters(producer, kafka_settings.topics.dead_letters.name)
    for num_bytes in (16 * 2**20, 8 * 2**20):
        for key_bytes in (16 * 2**20, 4 * 2**20):
            letters.put(bytes(num_bytes), "i", 0, 7, "not_json", key=bytes(key_bytes))
    letters.flush()
    found = dead_letters(kafka_settings, 4)
    assert {letter.value() for letter in found} == {bytes(8 * 2**20)}
    assert {letter.key() for letter in found} == {bytes(4 * 2**20)}
    headers: list[dict[str, Any]] = [dict(letter.headers() or ()) for letter in found]
    cut = [(letter.get("size"), letter.get("key_size")) for letter in headers]
    whole = b"16777216"
    assert cut == [(whole, whole), (whole, None), (None, whole), (None, None)]


def test_late_row_of_an_arrow_message_is_set_aside_alone(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    arrow = kafka_settings.topics.impressions.model_copy(update={"format": "arrow"})
    topics = kafka_settings.topics.model_copy(update={"impressions": arrow})
    settings = kafka_settings.model_copy(update={"topics": topics})
    schema = impression_rules(settings).schema
    times = [START_MS, START_MS + 9000, START_MS + 1000, START_MS + 4000]
    rows = [json.loads(impression(i, ts_ms)) for i, ts_ms in enumerate(times)]
    table = pa.Table.from_pylist(rows, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    producer.send(settings.topics.impressions.name, sink.getvalue().to_pybytes(), partition=0)
    producer.flush()
    letters = DeadLetters(producer, settings.topics.dead_letters.name)
    reader = EventReader(settings, "impressions", 0, None, letters)
    batch = next_batch(reader)
    assert batch.table.schema == impression_schema(settings)
    assert (ids(batch), batch.table["index"].to_pylist()) == (["i-0", "i-1", "i-3"], [0, 1, 3])
    reader.flush()
    reader.close()
    (letter,) = dead_letters(settings, 1)
    headers = dict(letter.headers() or ())
    assert (headers["reason"], headers["index"]) == (b"late", b"2")
    assert pa.ipc.open_stream(letter.value()).read_all().to_pylist() == table[2:3].to_pylist()


def test_headers_that_nobody_can_read_or_use_stop_nothing(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    settings = kafka_settings
    name = settings.topics.labels.name
    for value in (b"no json", None):
        raw_producer.produce(settings.kafka.bootstrap, name, 0, value, b"caf\xe9")
    producer.send(name, b"[", partition=0, headers={REPLAY_OF: b"a" * 2**19})
    producer.send(name, b"{", partition=0, headers={REPLAY_OF: f"{name}:0:0".encode()})
    producer.send(name, None, partition=0, headers={END_HEADER: b""})
    producer.flush()
    letters = DeadLetters(producer, settings.topics.dead_letters.name)
    reader = EventReader(settings, "labels", 0, None, letters)
    assert [batch.ended for batch in batches(reader)][-1]
    reader.flush()
    reader.close()
    found = {
        message.value(): dict(message.headers() or ()).get("replay_of")
        for message in dead_letters(settings, 4)
    }
    assert found == {b"no json": None, None: None, b"[": None, b"{": f"{name}:0:0".encode()}


def test_reader_of_an_empty_partition_is_caught_up(kafka_settings: Settings) -> None:
    reader = EventReader(kafka_settings, "labels", 0, None, None)
    assert (reader.read(), reader.caught_up(), reader.state()) == (None, True, (0, BEGIN_MS))
    reader.close()


def test_partition_is_not_idle_while_its_broker_is_away(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    raw = tiny_settings.model_dump()
    raw["teacher"]["version"], raw["das"]["idle_s"] = "newest", 0.3
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        settings = Settings.model_validate({**raw, "kafka": {"bootstrap": broker.bootstrap}})
        ensure_topics(settings)
        reader = EventReader(settings, "labels", 0, None, None)
        ahead = ReadAhead(settings)
        source = EventPartition(settings, "labels", 0, reader, ahead, ended=False)
        source.next_batch()
        broker.kill()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert source.next_batch() == []
        broker.start()
        items = next(items for items in iter(source.next_batch, object()) if items)
        assert items == [(str(s), ("idle", s, ("labels", 0))) for s in (0, 1)]
        source.close()


def test_event_of_the_future_is_set_aside_and_makes_nothing_late(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    raw = kafka_settings.model_dump()
    raw["topics"]["labels"] |= {"lateness_s": 100.0, "max_ahead_s": 60.0}
    settings = Settings.model_validate(raw)
    now_ms, name = time.time_ns() // 1_000_000, settings.topics.labels.name
    for i, ahead_s in enumerate((-2, 40, 600, 10**8, -1)):
        label = {"impression_id": f"i-{i}", "task": "click", "value": 1}
        value = json.dumps(label | {"ts_ms": now_ms + 1000 * ahead_s}).encode()
        producer.send(name, value, partition=0)
    producer.flush()
    counter = REJECTED.labels(name, "ts_in_future")
    reader = EventReader(settings, "labels", 0, None, None)
    rows: list[str] = []
    while reader.state()[0] < 5:
        rows += ids(next_batch(reader))
    assert rows == ["i-0", "i-1", "i-4"]
    assert counter._value.get() == 2
    assert reader.state() == (5, now_ms + 40_000)
    reader.close()


def standings(source: EventPartition, num: int) -> list[str]:
    """What a source says of itself until it has said so much to shard 0."""
    said: list[str] = []
    deadline = time.monotonic() + 60
    while len(said) < num:
        assert time.monotonic() < deadline, said
        said += [what for key, (what, *_) in source.next_batch() if key == "0"]
    return said


def test_idle_partition_is_behind_again_when_its_broker_is_away(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    raw = tiny_settings.model_dump()
    raw["teacher"]["version"], raw["das"]["idle_s"] = "newest", 1.0
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        settings = Settings.model_validate({**raw, "kafka": {"bootstrap": broker.bootstrap}})
        ensure_topics(settings)
        reader = EventReader(settings, "labels", 0, None, None)
        source = EventPartition(settings, "labels", 0, reader, ReadAhead(settings), ended=False)
        assert standings(source, 3) == ["wake", "at_end", "idle"]
        broker.kill()
        assert standings(source, 1) == ["behind"]
        broker.start()
        assert standings(source, 1) == ["idle"]
        source.close()


def test_partition_that_gets_only_what_is_set_aside_is_idle(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    raw = kafka_settings.model_dump()
    raw["teacher"]["version"], raw["das"]["idle_s"] = "newest", 0.5
    settings = Settings.model_validate(raw)
    topic = settings.topics.labels.name
    reader = EventReader(settings, "labels", 0, None, None)
    source = EventPartition(settings, "labels", 0, reader, ReadAhead(settings), ended=False)
    said: list[str] = []
    deadline = time.monotonic() + 60
    while "idle" not in said:
        assert time.monotonic() < deadline, said
        producer.send(topic, b"no label", partition=0)
        producer.flush()
        said += [what for key, (what, *_) in source.next_batch() if key == "0"]
    assert reader.state()[0] > 0
    source.close()


def test_labels_carry_position_of_their_task_and_address(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    label = {"impression_id": "i", "task": "conversion", "value": 1, "ts_ms": START_MS}
    name = kafka_settings.topics.labels.name
    producer.send(name, json.dumps(label).encode(), partition=0)
    producer.flush()
    reader = EventReader(kafka_settings, "labels", 0, None, None)
    batch = next_batch(reader)
    assert batch.table.to_pylist() == [
        {**label, "task": 1, "partition": 0, "offset": 0, "index": 0}
    ]
    reader.close()
