"""Sends dead letters back to the topics they came from, each once, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from flows.events.reader import is_end
from flows.kafka.client import WAIT_S, admin_client, client_config, cluster, producer_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.letters.log import LetterLog, messages_between, origin
from flows.settings import Settings


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
        if has_ended(config, topic, partition):
            raise ReplayRefused(f"{where}: its log has ended, nothing behind the end mark is read")


def replay(
    settings: Settings, log: LetterLog, letters: pl.DataFrame, on_sent: Callable[[], None]
) -> int:
    """Send letters to the partitions they came from, with the keys they had.

    Args:
        settings: of the run.
        log: that holds them.
        letters: of its index, each identity once.
        on_sent: called for each.

    Returns:
        How many were sent and acknowledged.

    Raises:
        DeliveryError: one was not acknowledged.
    """
    producer, num = BatchProducer(producer_config(settings.kafka)), 0
    for message in log.messages(letters):
        topic, partition, *_ = origin(message)
        assert topic is not None
        producer.send(topic, message.value(), partition=partition, key=message.key())
        num += 1
        on_sent()
    producer.flush()
    return num


def has_ended(config: dict[str, Any], topic: str, partition: int) -> bool:
    """Whether the last message of a partition is the end mark of a finite log."""
    consumer = PartitionConsumer(config, topic, partition, None)
    low, high = consumer.position, consumer.position + consumer.lag()
    consumer.close()
    if low == high:
        return False
    last = messages_between(config, topic, partition, high - 1, high)
    return any(is_end(message) for message in last)
