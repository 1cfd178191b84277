"""Examples in transactions: seen together, or never."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSource, run_main
from confluent_kafka.admin import AdminClient, NewTopic

from flows.join.past_transactions import end_past_transactions
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import DeliveryError
from flows.kafka.sink import Outgoing, TopicSink
from flows.kafka.transactions import TransactionalProducer, writer_name
from flows.kafka_settings import Kafka
from flows.settings import Settings
from tests.processes import free_addresses, started
from tests.test_das import (
    DAS,
    NUM_STAGES,
    Log,
    elsewhere,
    eventually,
    examples,
    messages,
    num_messages,
    num_rows,
)

KILLED_BEHIND_A_COMMIT = """
import os, signal
from flows.kafka.transactions import TransactionalProducer
send, flush = TransactionalProducer.send, TransactionalProducer.flush

def send_and_count(producer, *args, rows, **place):
    producer.num_rows = getattr(producer, "num_rows", 0) + rows
    send(producer, *args, rows=rows, **place)

def flush_and_die(producer, *args):
    flush(producer, *args)
    if getattr(producer, "num_rows", 0):
        os.kill(os.getpid(), signal.SIGKILL)

TransactionalProducer.send, TransactionalProducer.flush = send_and_count, flush_and_die
"""


@pytest.fixture
def config(kafka: str) -> dict[str, Any]:
    return client_config(Kafka(bootstrap=kafka))


@pytest.fixture
def topic(config: dict[str, Any]) -> str:
    name = f"transactions-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(config)  # its futures end only while it is there
    admin.create_topics([NewTopic(name, 1)])[name].result()
    return name


def read(consumer: PartitionConsumer, num: int) -> list[bytes | None]:
    """So many values, and the end behind them."""
    values: list[bytes | None] = []

    def done() -> bool:
        values.extend(message.value() for message in consumer.poll(100))
        return len(values) >= num and consumer.at_end_now() is True

    eventually(done)
    return values


@pytest.mark.kafka
def test_messages_are_seen_once_they_are_committed(config: dict[str, Any], topic: str) -> None:
    producer = TransactionalProducer(config, topic, 1.0)
    consumer = PartitionConsumer(config, topic, 0, 0)
    for value in (b"a", b"b"):
        producer.send(topic, value, partition=0)
    producer._producer.flush()  # in the log, not yet shown
    early = []

    def heard() -> bool:
        early.extend(consumer.poll(100))
        return consumer.lag() == 2

    eventually(heard)
    assert early == []
    assert not consumer.at_end_now()  # what is to come may yet be seen: not the end
    producer.flush()
    assert read(consumer, 2) == [b"a", b"b"]
    producer.flush()  # nothing to commit
    producer.send(topic, b"c", partition=0)
    producer.flush()
    assert read(consumer, 1) == [b"c"]
    assert (consumer.position, consumer.lag()) == (5, 0)  # two control records
    consumer.close()
    for offset in range(6):  # a place may be that of a control record
        again = PartitionConsumer(config, topic, 0, offset)
        assert read(again, 0 if offset > 3 else 1)[-1:] == ([] if offset > 3 else [b"c"])
        again.close()


@pytest.mark.kafka
def test_successor_ends_and_fences_its_predecessor(config: dict[str, Any], topic: str) -> None:
    zombie = TransactionalProducer(config, topic, 1.0)
    zombie.send(topic, b"kept", partition=0)
    zombie.flush()
    zombie.send(topic, b"lost", partition=0)
    zombie._producer.flush()
    successor = TransactionalProducer(config, topic, 1.0)
    successor.send(topic, b"new", partition=0)
    successor.flush()
    why = "another process writes under it, or the broker ended it after transaction"
    with pytest.raises(DeliveryError, match=f"{topic}.*{why}"):
        zombie.flush()
    consumer = PartitionConsumer(config, topic, 0, 0)
    assert read(consumer, 2) == [b"kept", b"new"]
    consumer.close()


@pytest.mark.kafka
def test_failing_step_shows_nothing_of_its_epoch(kafka_settings: Settings) -> None:
    """The last epoch of a run that ends counts; one that an exception ends does not."""
    topic = kafka_settings.topics.examples

    def flow(values: list[int]) -> Dataflow:
        def outgoing(value: int) -> tuple[str, Outgoing]:
            return "0", (None, b"%d" % (12 // value), 1)

        made = Dataflow("few")
        found = op.map("make", op.input("in", made, TestingSource(values)), outgoing)
        op.output("out", found, TopicSink(kafka_settings, topic, transactional=True))
        return made

    run_main(flow([6, 4]))
    with pytest.raises(BytewaxRuntimeError, match="make"):
        run_main(flow([3, 2, 0]))
    run_main(flow([1]))
    consumer = PartitionConsumer(client_config(kafka_settings.kafka), topic.name, 0, 0)
    assert read(consumer, 3) == [b"2", b"3", b"12"]
    consumer.close()


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_kills_change_nothing_that_a_reader_sees(kafka_settings: Settings, tmp_path: Path) -> None:
    """Alone, killed; then two processes, killed; then alone to the end."""
    log = Log(kafka_settings)
    plain = elsewhere(kafka_settings)
    raw = elsewhere(kafka_settings).model_dump()
    raw["das"]["sink"] = "transactional"
    settings = Settings.model_validate(raw)
    log.write(0)
    with started(DAS, settings, tmp_path / "run") as process:
        eventually(lambda: num_rows(settings) > 0)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    seen = num_rows(settings)
    log.write(1)
    addresses = free_addresses(2)
    with (
        started(DAS, settings, tmp_path / "run", 0, addresses) as first,
        started(DAS, settings, tmp_path / "run", 1, addresses) as second,
    ):
        eventually(lambda: num_rows(settings) > seen)
        for process in (first, second):
            process.kill()
            process.wait(60)
    for stage in range(2, NUM_STAGES):
        log.write(stage)
    for each, folder in ((settings, "run"), (plain, "plain")):
        with started(DAS, each, tmp_path / folder) as process:
            assert process.wait(60) == 0
    assert examples(settings) == examples(plain)


@pytest.mark.kafka
def test_killed_where_kafka_has_committed_and_the_snapshot_has_not(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    log = Log(kafka_settings)
    plain = elsewhere(kafka_settings)
    raw = elsewhere(kafka_settings).model_dump()
    raw["das"]["sink"] = "transactional"
    settings = Settings.model_validate(raw)
    for stage in range(NUM_STAGES):
        log.write(stage)
        with started(DAS, settings, tmp_path / "run", first=KILLED_BEHIND_A_COMMIT) as process:
            assert process.wait(60) == -signal.SIGKILL
    for each, folder in ((settings, "run"), (plain, "plain")):
        with started(DAS, each, tmp_path / folder) as process:
            assert process.wait(60) == 0
    assert examples(settings) == examples(plain)  # what came again has the same content
    partitions = range(settings.topics.examples.partitions)
    written = sum(table.num_rows for p in partitions for table, _ in messages(settings, p))
    assert written > num_rows(settings)


@pytest.mark.kafka
def test_start_without_transactions_ends_those_of_its_predecessor(
    kafka_settings: Settings, config: dict[str, Any], tmp_path: Path
) -> None:
    topic = kafka_settings.topics.examples
    with_them, without = (with_das(kafka_settings, sink=s) for s in ("transactional", "idempotent"))
    end_past_transactions(tmp_path, without)
    end_past_transactions(tmp_path, with_them)
    killed = TransactionalProducer(config, writer_name(topic.name, "1"), 300.0)
    killed.send(topic.name, b"lost", partition=1)
    killed._producer.flush()
    consumer = PartitionConsumer(config, topic.name, 1, 0)
    eventually(lambda: bool(consumer.lag() == 1 and not consumer.at_end_now()))
    end_past_transactions(tmp_path, without)
    assert read(consumer, 0) == []
    consumer.close()
    later = TransactionalProducer(config, writer_name(topic.name, "1"), 300.0)
    end_past_transactions(tmp_path, without)  # ended once, as others write then
    later.send(topic.name, b"kept", partition=1)
    later.flush()


@pytest.mark.kafka
def test_live_join_goes_on_without_transactions(kafka_settings: Settings, tmp_path: Path) -> None:
    """Killed within a transaction that the broker would keep for minutes."""
    raw = elsewhere(kafka_settings).model_dump()
    raw["teacher"]["version"] = "newest"
    raw["das"] |= {"idle_s": 0.2, "teacher_grace_s": 0.5, "recovery_every_s": 100}
    settings = Settings.model_validate(raw)
    log = Log(settings, num=300)
    log.write(0)
    log.write(1)
    with started(DAS, with_das(settings, sink="transactional"), tmp_path) as process:
        eventually(lambda: num_messages(settings) > 0)
        process.kill()
        process.wait(60)
    assert num_rows(settings) == 0
    with started(DAS, settings, tmp_path) as process:
        eventually(lambda: num_rows(settings) > 0, 30.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def with_das(settings: Settings, **das: Any) -> Settings:
    """The same settings, but for some of the join."""
    return settings.model_copy(update={"das": settings.das.model_copy(update=das)})
