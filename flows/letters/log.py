"""Reads the dead letters that a topic holds: where each came from and why, and its bytes.

An index of all letters fits into memory, their bytes need not: they are read when they are wanted.
An event that was sent again and is still wrong, and one that a crash reads again, lead to more
letters of one identity: the place (topic, partition, offset, index) where the event stood first.
The newest counts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import polars as pl
from confluent_kafka import Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from flows.events.dead_letters import KEY_SIZE, SIZE
from flows.kafka.client import WAIT_S, BrokerUnreachable, admin_client, client_config, cluster
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.headers import headers_of
from flows.settings import Settings

MESSAGES = 1000
"""Read at a time."""
PAUSE_S = 0.005
NOTHING = -1
"""The broker's answer where no message is as late."""

IDENTITY = ("topic", "partition", "offset", "index")
"""Of an event that was set aside."""
SCHEMA = {
    "letter_partition": pl.Int32,
    "letter_offset": pl.Int64,
    "at_ms": pl.Int64,  # when it was set aside, wall clock
    "num_bytes": pl.Int64,
    "cut": pl.Boolean,  # the event was too large, these are the first bytes of it or of its key
    "topic": pl.String,  # null: the message has no origin, exfm did not write it
    "partition": pl.Int32,
    "offset": pl.Int64,
    "index": pl.Int32,  # null: a whole message
    "reason": pl.String,
}
FIRST = re.compile(rb"(?P<place>[\w.-]+:\d+):(?P<offset>\d{1,19})(:(?P<index>\d{1,9}))?")
Origin: TypeAlias = "tuple[str | None, int | None, int | None, int | None, str | None]"


class LetterLog:
    """The letters that stand in the topic now; what comes later is not seen."""

    def __init__(self, settings: Settings) -> None:
        """Ask the broker how far the topic reaches.

        Raises:
            BrokerUnreachable: no broker answers.
        """
        self._config = client_config(settings.kafka)
        self._topic = settings.topics.dead_letters.name
        self._admin = admin_client(self._config)
        found = cluster(self._admin, self._config["bootstrap.servers"], WAIT_S).topics
        self.exists = self._topic in found
        """Whether there is such a topic."""
        self._partitions = sorted(found[self._topic].partitions) if self.exists else []

    def index(self, since_ms: int | None = None) -> pl.DataFrame:
        """Letters in the columns of `SCHEMA`, in the order of the log, repeats included.

        Args:
            since_ms: only those set aside then or later.
        """
        rows = []
        for partition in self._partitions:
            first = None if since_ms is None else self._offset_at(partition, since_ms)
            if first == NOTHING:
                continue
            for message in messages_between(self._config, self._topic, partition, first, None):
                place = (partition, message.offset(), message.timestamp()[1])
                size = (len(message.value() or b""), is_cut(message))
                rows.append((*place, *size, *origin(message)))
        letters = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        return letters if since_ms is None else letters.filter(pl.col("at_ms") >= since_ms)

    def messages(self, letters: pl.DataFrame) -> Iterator[Message]:
        """The messages of an index's rows, in the order of the log."""
        for (partition,), rows in letters.sort("letter_partition").group_by(
            "letter_partition", maintain_order=True
        ):
            wanted = set(rows["letter_offset"].to_list())
            place = (self._topic, int(str(partition)))
            for message in messages_between(self._config, *place, min(wanted), max(wanted) + 1):
                if message.offset() in wanted:
                    yield message

    def _offset_at(self, partition: int, since_ms: int) -> int:
        """Offset that nothing of `since_ms` or later precedes; NOTHING if nothing is as late."""
        place = TopicPartition(self._topic, partition)
        spec = OffsetSpec.for_timestamp(since_ms)
        found = self._admin.list_offsets({place: spec}, request_timeout=WAIT_S)[place].result()
        return int(found.offset)


def messages_between(
    config: dict[str, Any], topic: str, partition: int, first: int | None, end: int | None
) -> Iterator[Message]:
    """Messages from `first` (None: the oldest) up to `end` (None: the high watermark).

    Raises:
        BrokerUnreachable: the broker does not answer, or falls silent.
    """
    consumer = PartitionConsumer(config, topic, partition, first)
    try:
        end = consumer.position + consumer.lag() if end is None else end
        heard_s, position = time.monotonic(), consumer.position
        while consumer.position < end:
            messages = consumer.poll(MESSAGES)
            yield from (m for m in messages if (m.offset() or 0) < end)
            if consumer.position > position:
                heard_s, position = time.monotonic(), consumer.position
            elif time.monotonic() > heard_s + WAIT_S:
                cause = f"topic {topic!r} partition {partition} is silent"
                raise BrokerUnreachable(config["bootstrap.servers"], WAIT_S, cause)
            else:
                time.sleep(PAUSE_S)
    finally:
        consumer.close()


def origin(message: Message) -> Origin:
    """Topic, partition, offset and index where a letter's event stood first, and the reason."""
    headers = headers_of(message)
    try:
        topic, reason = headers["topic"].decode(), headers["reason"].decode()
        partition, offset = int(headers["partition"]), int(headers["offset"])
        index = int(headers["index"]) if "index" in headers else None
    except (KeyError, ValueError, AttributeError, TypeError):
        return None, None, None, None, None
    if not (0 <= partition < 2**31 and 0 <= offset < 2**63 and 0 <= (index or 0) < 2**31):
        return None, None, None, None, None
    first = FIRST.fullmatch(headers.get("replay_of") or b"")
    if first is None or first["place"] != f"{topic}:{partition}".encode():
        return topic, partition, offset, index, reason
    if int(first["offset"]) >= offset:  # nobody of ours wrote that
        return topic, partition, offset, index, reason
    if first["index"] is not None:
        index = int(first["index"])  # else the rows of a whole message are told apart by now
    return topic, partition, int(first["offset"]), index, reason


def is_cut(message: Message) -> bool:
    """Whether a letter says that its event, or the key of that, was larger."""
    return not {SIZE, KEY_SIZE}.isdisjoint(headers_of(message))


def place(topic: object, partition: object, offset: object, index: object) -> str:
    """An identity as it is typed: `labels:0:17`, with a row `labels:0:17:3`."""
    return f"{topic}:{partition}:{offset}" + ("" if index is None else f":{index}")


def distinct(letters: pl.DataFrame) -> pl.DataFrame:
    """The newest letter of each identity, with `repeats`, the number of the others.

    In the order of the log; messages without origin stay as they are.
    """
    known = pl.col("topic").is_not_null()
    newest = (
        letters.filter(known)
        .with_columns(repeats=pl.len().over(IDENTITY) - 1)
        .sort("at_ms", maintain_order=True)
        .unique(IDENTITY, keep="last", maintain_order=True)
    )
    strangers = letters.filter(~known).with_columns(repeats=pl.lit(0, newest.schema["repeats"]))
    return pl.concat([newest, strangers]).sort("letter_partition", "letter_offset")
