"""Sends dead letters back to the topics they came from, each once, byte for byte.

A header says where the event stood first, so that it is not taken for another one if it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
from confluent_kafka import Message

from flows.events.dead_letters import REPLAY_OF
from flows.events.reader import is_end
from flows.kafka.client import (
    WAIT_S,
    BrokerUnreachable,
    admin_client,
    client_config,
    cluster,
    producer_config,
)
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer, DeliveryError
from flows.letters.log import LetterLog, messages_between, origin, place
from flows.settings import Settings

FLUSH_S, STOP_S = 60.0, 10.0
"""How long the last acknowledgements may take; where a stop is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """How far a replay has come."""

    events: int
    acknowledged: int

    def __str__(self) -> str:
        return f"{self.events:,} events sent, {self.acknowledged:,} acknowledged"


class ReplayRefused(RuntimeError):
    """Nothing was sent: it would not reach anybody."""


def check_destinations(settings: Settings, letters: pl.DataFrame) -> None:
    """See that what is sent back will be read.

    Raises:
        ReplayRefused: a topic or partition is gone, is no event topic, or its log has ended.
        BrokerUnreachable: no broker answers.
    """
    config, topics = client_config(settings.kafka), settings.topics
    found = cluster(admin_client(config), config["bootstrap.servers"], WAIT_S).topics
    known = (topics.impressions.name, topics.labels.name)
    for topic, partition in letters.select("topic", "partition").unique().sort("*").iter_rows():
        where = f"topic {topic!r} partition {partition}"
        if topic not in known:
            raise ReplayRefused(
                f"{where}: the event topics of this configuration are {' and '.join(known)}; "
                "choose by --topic"
            )
        if topic not in found or partition not in found[topic].partitions:
            raise ReplayRefused(f"{where} does not exist any more")
        refuse_ended(config, topic, partition)


def replay(
    settings: Settings,
    log: LetterLog,
    letters: pl.DataFrame,
    on_sent: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Sent:
    """Send letters to the partitions they came from, with the keys they had.

    Args:
        settings: of the run.
        log: that holds them.
        letters: of its index, each identity once.
        on_sent: called for each.
        should_stop: asked before each; those sent so far are waited for.

    Raises:
        DeliveryError: one was not acknowledged, or the letters cannot be read; the message says how
            many were sent.
    """
    producer, num = BatchProducer(producer_config(settings.kafka)), 0
    try:
        for message in log.messages(letters):
            if should_stop():
                break
            send(producer, message)
            num += 1
            on_sent()
        producer.flush(STOP_S if should_stop() else FLUSH_S)
    except (BrokerUnreachable, DeliveryError) as error:
        sent = Sent(events=num, acknowledged=num - producer.unacknowledged)
        raise DeliveryError(f"{sent}: {error}") from error
    return Sent(events=num, acknowledged=num)


def send(producer: BatchProducer, letter: Message) -> None:
    """Send the event of a letter."""
    topic, partition, offset, index, _ = origin(letter)
    assert topic is not None
    first = place(topic, partition, offset, index).encode()
    producer.send(
        topic, letter.value(), partition=partition, key=letter.key(), headers={REPLAY_OF: first}
    )


def refuse_ended(config: dict[str, Any], topic: str, partition: int) -> None:
    """See that a log goes on.

    Raises:
        ReplayRefused: its last message is an end mark.
    """
    if has_ended(config, topic, partition):
        raise ReplayRefused(
            f"topic {topic!r} partition {partition}: its log has ended, nothing behind the end "
            "mark is read"
        )


def has_ended(config: dict[str, Any], topic: str, partition: int) -> bool:
    """Whether the last message of a partition is the end mark of a finite log."""
    consumer = PartitionConsumer(config, topic, partition, None)
    low, high = consumer.position, consumer.position + consumer.lag()
    consumer.close()
    if low == high:
        return False
    last = messages_between(config, topic, partition, high - 1, high)
    return any(is_end(message) for message in last)
