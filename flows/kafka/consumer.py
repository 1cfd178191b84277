"""Reads one partition of one topic from an offset that the caller keeps.

Nothing is committed to the broker. A broker that goes away is waited for: librdkafka reconnects,
and what it says meanwhile is logged. Messages that were deleted before they were read are skipped
only if the caller says so (flows/kafka/lost_offsets.py). What cannot heal is raised.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from flows.kafka.client import UNREACHABLE, UNSETTLED, WAIT_S, BrokerUnreachable, refusing
from flows.kafka.lost_offsets import LostOffsets

logger = logging.getLogger(__name__)

OPTIONS = {
    "group.id": "exfm",  # the client wants one; nothing is ever committed under it
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 20,
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16 * 1024,
    "fetch.message.max.bytes": 2**20,  # a larger buffer goes back to the system, and comes anew
}
"""Small enough that a dozen consumers of one process stay below 200 MB together."""
STOP = LostOffsets()


class PartitionConsumer:
    """One partition, in order, from `offset` on."""

    def __init__(
        self,
        config: dict[str, Any],
        topic: str,
        partition: int,
        offset: int | None,
        end: int | None = None,
        *,
        committed: bool = True,
        lost: LostOffsets = STOP,
    ) -> None:
        """Check that `offset` is still there, and begin to fetch.

        Args:
            config: of `client_config`.
            topic: must exist.
            partition: its number.
            offset: of the first message to read; None: the oldest that is retained.
            end: no message from here on is read, None: there is no such end.
            committed: messages of open transactions are not there.
            lost: what to do if `offset`, or a later position, is no longer retained.

        Raises:
            BrokerUnreachable: no broker answers.
            OffsetLost: the offset is outside what the partition holds, and is not skipped.
            SettingsError: librdkafka refuses an option.
        """
        self._topic = topic
        self._partition = partition
        self._end = end
        self._lost = lost
        self._bootstrap = config["bootstrap.servers"]
        isolation = "read_committed" if committed else "read_uncommitted"
        options = {**config, **OPTIONS, "isolation.level": isolation}
        with refusing(options):
            self._consumer = Consumer(options, logger=logger, error_cb=self._on_error)
        self._address = TopicPartition(topic, partition)
        try:
            low, self._high = self.bounds = self._bounds()
            self._position = low if offset is None else offset
            self._begin(is_there=low <= self._position <= self._high)
        except BaseException:
            self._consumer.close()
            raise

    @property
    def position(self) -> int:
        """Offset of the next message that `poll` returns."""
        return self._position

    def poll(self, max_messages: int) -> list[Message]:
        """Messages that have arrived, in order, at most `max_messages`; does not wait.

        Raises:
            OffsetLost: the position is no longer retained, and is not skipped.
            RuntimeError: the client cannot go on.
        """
        found = self._consumer.consume(max_messages, timeout=0)
        if found and self._are_plain(found):  # one by one, Python takes longer than the client
            self._position = (found[-1].offset() or 0) + 1
            return found
        return [message for message in found if self._takes(message)]

    def at_end(self) -> bool:
        """Whether everything up to the high watermark, as last heard of, has been returned."""
        return self.lag() == 0

    def at_end_now(self, timeout_s: float = 1.0) -> bool | None:
        """Whether everything was returned, by the broker's answer; None if it does not answer."""
        if not self.at_end():
            return False
        try:
            _, self._high = self._consumer.get_watermark_offsets(self._address, timeout=timeout_s)
        except KafkaException as failure:
            logger.warning("%s: %s", self._place(), failure.args[0].str())
            return None
        return self.at_end()

    def lag(self) -> int:
        """Offsets between the position and the high watermark, as last heard of."""
        _, high = self._consumer.get_watermark_offsets(self._address, cached=True)
        self._high = max(self._high, high)
        return max(0, self._high - self._position)

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _begin(self, *, is_there: bool) -> None:
        """Fetch from the position on, or from where reading may go on if it is not there."""
        if not is_there:
            place = (self._topic, self._partition, self._position)
            self._position = self._lost.resume(*place, *self.bounds)
        self._consumer.assign([TopicPartition(self._topic, self._partition, self._position)])

    def _bounds(self) -> tuple[int, int]:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return self._consumer.get_watermark_offsets(self._address, timeout=WAIT_S)
            except KafkaException as failure:
                error = failure.args[0]
                if error.code() in UNREACHABLE:
                    raise BrokerUnreachable(self._bootstrap, WAIT_S, error.str()) from failure
                if time.monotonic() > deadline or not self._is_unsettled(error):
                    raise RuntimeError(f"{self._place()}: {error.str()}") from failure
            time.sleep(0.05)

    def _is_unsettled(self, error: KafkaError) -> bool:
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION):
            found = self._consumer.list_topics(self._topic, timeout=WAIT_S).topics[self._topic]
            return found.error is None and self._partition in found.partitions
        return error.code() in UNSETTLED

    def _are_plain(self, found: list[Message]) -> bool:
        """Whether these are messages only, in order, all of them wanted; mostly they are."""
        if any(map(Message.error, found)):
            return False
        offset_N = np.fromiter(map(Message.offset, found), np.int64, len(found))
        in_order = offset_N[0] >= self._position and (offset_N[1:] > offset_N[:-1]).all()
        return bool(in_order and (self._end is None or offset_N[-1] < self._end))

    def _takes(self, message: Message) -> bool:
        """Move the position behind what was received; whether it is a message to return."""
        error, offset = message.error(), message.offset() or 0
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            self._raise_unless_transient(error)
            return False
        if error is not None:
            self._position = max(self._position, offset)  # behind control records
            return False
        if self._end is not None and offset >= self._end:
            self._position = max(self._position, self._end)
            return False
        self._expect(offset)
        self._position = offset + 1
        return True

    def _expect(self, offset: int) -> None:
        if offset < self._position:
            raise RuntimeError(
                f"{self._place()}: offset {offset} came again, expected {self._position} or later"
            )

    def _raise_unless_transient(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self.bounds = self._bounds()
            self._begin(is_there=False)
            return
        if error.fatal() or error.code() not in (*UNREACHABLE, *UNSETTLED):
            raise RuntimeError(f"{self._place()}: {error.name()}: {error.str()}")
        logger.warning("%s: %s, trying again", self._place(), error.str())

    def _place(self) -> str:
        return f"topic {self._topic!r} partition {self._partition}"

    def _on_error(self, error: KafkaError) -> None:
        logger.warning("%s: %s", self._place(), error.str())
