"""Clients and sinks on a real Apache Kafka."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, run_main
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import (
    BrokerUnreachable,
    admin_client,
    client_config,
    ensure_topics,
    producer_config,
    refusal,
)
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.lost_offsets import LostOffsets, OffsetLost
from flows.kafka.producer import WHOLE_BATCHES, BatchProducer, DeliveryError
from flows.kafka.sink import TopicSink
from flows.kafka_settings import Kafka
from flows.settings import Settings, SettingsError, Topic
from monitoring.metrics import SINK_EVENTS, SOURCE_LOST

T = TypeVar("T")
SKIP = LostOffsets(skips=True)


def eventually(look: Callable[[], T | None], within_s: float = 60.0) -> T:
    """What `look` first finds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
    raise AssertionError(f"nothing found within {within_s} s")


def take(consumer: PartitionConsumer, count: int) -> list[Message]:
    messages: list[Message] = []

    def enough() -> list[Message] | None:
        messages.extend(consumer.poll(100))
        return messages if len(messages) >= count else None

    return eventually(enough)


def values(messages: list[Message]) -> list[bytes | None]:
    return [message.value() for message in messages]


@pytest.fixture
def config(kafka: str) -> dict[str, Any]:
    return client_config(Kafka(bootstrap=kafka))


@pytest.fixture
def topic(config: dict[str, Any]) -> str:
    """A topic of one partition, with a leader."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    make(AdminClient(config), name)
    return name


def make(admin: AdminClient, name: str, **options: str) -> None:
    admin.create_topics([NewTopic(name, 1, config=options)])[name].result()

    def led() -> bool | None:
        found = admin.list_topics(timeout=10).topics.get(name)
        return True if found and [p.leader for p in found.partitions.values()] == [1] else None

    eventually(led)


def delete_before(config: dict[str, Any], topic: str, offset: int) -> None:
    """As retention does."""
    place = TopicPartition(topic, 0, offset)
    admin = AdminClient(config)  # its futures end only while it is there
    admin.delete_records([place])[place].result()


def renamed(settings: Settings, **topics: dict[str, Any]) -> Settings:
    raw = settings.model_dump()
    for key, changes in topics.items():
        raw["topics"][key].update(changes)
    return Settings.model_validate(raw)


def test_no_bootstrap_tells_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"kafka\.bootstrap = ''.*exfm up"):
        client_config(Kafka())


def test_security_settings_pass_through() -> None:
    client: dict[str, str | int | float | bool] = {
        "security.protocol": "SASL_SSL",
        "sasl.password": "secret",
    }
    found = client_config(Kafka(bootstrap="a:1", client=client))
    assert client.items() <= found.items()


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"foo.bar": 1}, ["'foo.bar' = 1", "No such configuration property"]),
        ({"security.protocol": "NOPE"}, ["'security.protocol' = 'NOPE'", "Invalid value"]),
        ({"compression.type": "brotli"}, ['"brotli"']),
        (
            {"security.protocol": "SSL", "ssl.ca.location": "/no.pem"},
            ["'ssl.ca.location' = '/no.pem'", "failed"],
        ),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"},
            ["sasl.username and sasl.password must be set"],
        ),
        ({"socket.timeout.ms": 10**12}, ["'socket.timeout.ms'", "outside allowed range"]),
    ],
)
def test_refused_client_option_is_named(client: dict[str, Any], words: list[str]) -> None:
    config = client_config(Kafka(bootstrap="127.0.0.1:1", client=client))
    for make in (admin_client, BatchProducer, partition_zero):
        with pytest.raises(SettingsError) as refused:
            make(config)
        message = str(refused.value)
        assert message.startswith("kafka.client: ")
        assert all(word in message for word in words), message
        assert len(message.splitlines()) == 1


def partition_zero(config: dict[str, Any]) -> PartitionConsumer:
    return PartitionConsumer(config, "events", 0, None)


def test_refused_option_of_a_producer_is_named() -> None:
    config = client_config(Kafka(bootstrap="127.0.0.1:1", client={"acks": 0}))
    with pytest.raises(SettingsError, match=r"'acks' = 0, 'enable.idempotence' = True: .* must be"):
        BatchProducer(config)


def test_option_that_takes_a_function_is_named() -> None:
    config = client_config(Kafka(bootstrap="127.0.0.1:1", client={"error_cb": "x"}))
    with pytest.raises(SettingsError, match=r"^kafka\.client: 'error_cb' = 'x': .*callable"):
        admin_client(config)


def test_secret_option_is_not_shown() -> None:
    said = refusal({"sasl.password": "hush"}, "no such file: sasl.password")
    assert said == "'sasl.password' = (not shown): no such file: sasl.password"


def test_producers_compress_as_configured() -> None:
    kafka = Kafka(bootstrap="a:1")
    assert producer_config(kafka) == {**client_config(kafka), "compression.type": "lz4"}
    for changed in ({"compression": "zstd"}, {"client": {"compression.type": "zstd"}}):
        found = producer_config(Kafka.model_validate({"bootstrap": "a:1", **changed}))
        assert found["compression.type"] == "zstd"


def test_unreachable_broker_is_named(tiny_settings: Settings) -> None:
    kafka = {"bootstrap": "127.0.0.1:1"}
    settings = Settings.model_validate({**tiny_settings.model_dump(), "kafka": kafka})
    with pytest.raises(BrokerUnreachable, match=r"'127\.0\.0\.1:1' within 1 s"):
        ensure_topics(settings, wait_s=1)


@pytest.mark.kafka
def test_topics_are_created_once_and_checked(kafka_settings: Settings) -> None:
    ensure_topics(kafka_settings)  # they are there already
    admin = AdminClient(client_config(kafka_settings.kafka))
    found = admin.list_topics(timeout=10).topics
    for key, topic in kafka_settings.topics:
        assert len(found[topic.name].partitions) == topic.partitions
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic.name)
        policy = admin.describe_configs([resource])[resource].result()["cleanup.policy"].value
        assert policy == ("compact" if key == "snapshots" else "delete")
    name = kafka_settings.topics.labels.name
    with pytest.raises(SettingsError, match=rf"{name}' has 2 partitions, configured are 3"):
        ensure_topics(renamed(kafka_settings, labels={"partitions": 3}))


@pytest.mark.kafka
def test_partition_is_read_in_order_from_any_offset(
    config: dict[str, Any], topic: str, producer: BatchProducer
) -> None:
    before = SINK_EVENTS.labels(topic)._value.get()
    for i in range(200):
        producer.send(topic, b"%d" % i, partition=0, rows=2)
    producer.flush()
    assert SINK_EVENTS.labels(topic)._value.get() - before == 400
    for offset in (None, 0, 150):
        consumer = PartitionConsumer(config, topic, 0, offset)
        start = offset or 0
        assert (consumer.position, consumer.lag(), consumer.at_end()) == (start, 200 - start, False)
        assert values(take(consumer, 200 - start)) == [b"%d" % i for i in range(start, 200)]
        assert (consumer.position, consumer.lag(), consumer.at_end()) == (200, 0, True)
        consumer.close()


@pytest.mark.kafka
def test_offset_that_is_gone_is_an_error_with_both_offsets(
    config: dict[str, Any], topic: str, producer: BatchProducer
) -> None:
    for i in range(10):
        producer.send(topic, b"%d" % i)
    producer.flush()
    delete_before(config, topic, 4)
    for offset in (3, 11):
        message = f"topic '{topic}' partition 0: offset {offset} is lost: .* 4 to 10"
        with pytest.raises(RuntimeError, match=message):
            PartitionConsumer(config, topic, 0, offset)
    consumer = PartitionConsumer(config, topic, 0, None)
    assert values(take(consumer, 6)) == [b"%d" % i for i in range(4, 10)]
    consumer.close()


@pytest.mark.kafka
def test_skipped_offsets_are_told_and_counted_at_the_start(
    config: dict[str, Any],
    topic: str,
    producer: BatchProducer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for i in range(10):
        producer.send(topic, b"%d" % i)
    producer.flush()
    delete_before(config, topic, 7)
    consumer = PartitionConsumer(config, topic, 0, 3, lost=SKIP)
    assert (consumer.position, consumer.lag()) == (7, 3)
    assert values(take(consumer, 3)) == [b"7", b"8", b"9"]
    consumer.close()
    assert SOURCE_LOST.labels(topic)._value.get() == 4
    (said,) = [r for r in caplog.records if r.name == "flows.kafka.lost_offsets"]
    assert said.levelname == "WARNING"
    assert "offset 3 is lost" in said.getMessage()
    assert "going on at offset 7 without 4 messages" in said.getMessage()


@pytest.mark.kafka
@pytest.mark.parametrize("skips", [True, False])
def test_offsets_lost_while_reading_are_skipped_or_stop(
    config: dict[str, Any], topic: str, producer: BatchProducer, skips: bool
) -> None:
    for _ in range(40):
        producer.send(topic, os.urandom(300_000))
    producer.flush()
    slow = {**config, "queued.min.messages": 1}  # a fetch ahead, and no more
    consumer = PartitionConsumer(slow, topic, 0, 0, lost=LostOffsets(skips=skips))
    read = [message.offset() for message in take(consumer, 1)]
    delete_before(config, topic, 30)

    def ended() -> bool | None:
        read.extend(message.offset() for message in consumer.poll(100))
        return consumer.at_end() or None

    if skips:
        eventually(ended)
        ahead = len(read) - 10
        assert read == [*range(ahead), *range(30, 40)]
        assert 0 < ahead < 30
        assert SOURCE_LOST.labels(topic)._value.get() == 30 - ahead
    else:
        with pytest.raises(OffsetLost, match=r"is lost: the partition holds offsets 30 to 40"):
            eventually(ended)
    consumer.close()


@pytest.mark.kafka
def test_missing_topic_is_an_error(config: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="topic 'nowhere' partition 0: "):
        PartitionConsumer(config, "nowhere", 0, None)


@pytest.mark.kafka
def test_topic_that_disappears_while_it_is_read_is_an_error(
    config: dict[str, Any], topic: str, producer: BatchProducer
) -> None:
    for _ in range(5):
        producer.send(topic, b"x")
    producer.flush()
    consumer = PartitionConsumer(config, topic, 0, 0)
    take(consumer, 5)
    admin = AdminClient(config)
    admin.delete_topics([topic])[topic].result()
    make(admin, topic)
    with pytest.raises(RuntimeError, match=f"topic '{topic}' partition 0: "):
        eventually(lambda: consumer.poll(10) or None)
    consumer.close()


@pytest.mark.kafka
def test_control_records_do_not_hide_the_end(config: dict[str, Any], topic: str) -> None:
    writer = Producer({**config, "transactional.id": topic})
    writer.init_transactions()
    for keep in (True, False):
        writer.begin_transaction()
        writer.produce(topic, b"kept" if keep else b"aborted")
        writer.flush()
        if keep:
            writer.commit_transaction()
        else:
            writer.abort_transaction()
    consumer = PartitionConsumer(config, topic, 0, 0)
    seen = []

    def ended() -> bool | None:
        seen.extend(values(consumer.poll(10)))
        return consumer.at_end() or None

    assert eventually(ended)
    assert (seen, consumer.position) == ([b"kept"], 4)
    consumer.close()


@pytest.mark.kafka
def test_full_queue_is_waited_for(config: dict[str, Any], topic: str) -> None:
    producer = BatchProducer({**config, "queue.buffering.max.messages": 10})
    for i in range(1000):
        producer.send(topic, b"%d" % i)
    producer.flush()
    consumer = PartitionConsumer(config, topic, 0, 0)
    assert values(take(consumer, 1000)) == [b"%d" % i for i in range(1000)]
    consumer.close()


@pytest.mark.kafka
def test_batches_wait_for_a_broker_without_a_spin(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as broker:
        config = client_config(Kafka(bootstrap=broker.bootstrap))
        make(AdminClient(config), "frozen")
        producer = BatchProducer(config, WHOLE_BATCHES)
        producer.send("frozen", b"knows its broker")
        producer.flush()
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                producer.send("frozen", bytes(100_000))
            before_s = time.process_time()
            with pytest.raises(DeliveryError, match="20 messages without acknowledgement"):
                producer.flush(2.0)
            spent_s = time.process_time() - before_s
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        producer.flush()
    assert spent_s < 0.5


@pytest.mark.kafka
def test_refused_message_fails_the_flush(config: dict[str, Any]) -> None:
    name = f"small-{uuid.uuid4().hex[:8]}"
    make(AdminClient(config), name, **{"max.message.bytes": "1000"})
    producer = BatchProducer(config)
    producer.send(name, b"x" * 5000)
    with pytest.raises(DeliveryError, match=rf"1 messages failed, .*{name}.*MSG_SIZE_TOO_LARGE"):
        producer.flush()
    with pytest.raises(DeliveryError, match="1 messages failed"):
        producer.send(name, b"small")


@pytest.mark.kafka
def test_message_that_no_topic_takes_is_refused_at_once(
    producer: BatchProducer, topic: str
) -> None:
    with pytest.raises(DeliveryError, match=rf"topic '{topic}': a message of 16777216 bytes"):
        producer.send(topic, bytes(16 * 2**20))


@pytest.mark.kafka
def test_sink_writes_each_item_to_its_partition(kafka_settings: Settings) -> None:
    name = f"sink-{uuid.uuid4().hex[:8]}"
    topic = Topic(name=name, partitions=12)  # "10" sorts before "2"
    settings = renamed(kafka_settings, examples=topic.model_dump())
    ensure_topics(settings)
    items = [(str(i % 12), (b"key", b"%d" % i, 3)) for i in range(48)]
    flow = Dataflow("test_sink")
    op.output("out", op.input("in", flow, TestingSource(items)), TopicSink(settings, topic))
    run_main(flow)
    for partition in range(12):
        consumer = PartitionConsumer(client_config(settings.kafka), name, partition, 0)
        assert values(take(consumer, 4)) == [b"%d" % i for i in range(partition, 48, 12)]
        consumer.close()
    assert SINK_EVENTS.labels(name)._value.get() == 144


@pytest.mark.kafka
def test_clients_survive_a_killed_broker(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        config = client_config(Kafka(bootstrap=broker.bootstrap))
        make(AdminClient(config), "events")
        producer = BatchProducer({**config, "message.timeout.ms": 100})  # nothing is given up
        producer.send("events", b"before")
        producer.flush()
        consumer = PartitionConsumer(config, "events", 0, 0)
        assert values(take(consumer, 1)) == [b"before"]
        broker.kill()
        producer.send("events", b"meanwhile")
        with pytest.raises(DeliveryError, match="1 messages without acknowledgement after 1 s"):
            producer.flush(timeout_s=1)
        assert consumer.poll(10) == []
        broker.start()
        producer.send("events", b"after")
        producer.flush()
        assert values(take(consumer, 2)) == [b"meanwhile", b"after"]
        consumer.close()
