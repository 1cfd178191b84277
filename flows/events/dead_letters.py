"""Sets rejected events aside: their own bytes, with reason and origin in the headers."""

from __future__ import annotations

from flows.kafka.client import MAX_MESSAGE_BYTES
from flows.kafka.producer import BatchProducer

MAX_LETTER_BYTES = MAX_MESSAGE_BYTES // 2
MAX_KEY_BYTES = MAX_MESSAGE_BYTES // 4
"""More is cut off: a letter that no topic takes would stop the flow for ever."""
MAX_PLACE_BYTES = 300
"""A longer REPLAY_OF names no place: the name of a topic has 249 characters at most."""
REPLAY_OF = "exfm-replay-of"
"""Header of an event that was sent again: its first place, `topic:partition:offset[:index]`."""
SIZE, KEY_SIZE = "size", "key_size"
"""Headers of what was cut: how many bytes there were."""


class DeadLetters:
    """The topic of rejected events; (topic, partition, offset, index) is a letter's identity."""

    def __init__(self, producer: BatchProducer, topic: str) -> None:
        """Write to `topic` through `producer`, which may serve other topics too."""
        self._producer = producer
        self._topic = topic

    def put(
        self,
        rejected: bytes | None,
        topic: str,
        partition: int,
        offset: int,
        reason: str,
        index: int | None = None,
        key: bytes | None = None,
        replay_of: bytes | None = None,
    ) -> None:
        """Send one letter; a crash may repeat it.

        Args:
            rejected: the bytes as they were read, the first few MB if they are many (SIZE then
                says how many); for a row of an Arrow message, an Arrow IPC stream of that row.
            topic: where they were read.
            partition: where they were read.
            offset: where they were read.
            reason: why, one of few names.
            index: the row, if the rest of the message was good.
            key: of the message that held it; cut likewise (KEY_SIZE).
            replay_of: its header REPLAY_OF, if it was sent again; left out if it is no place.
        """
        headers = {
            "reason": reason.encode(),
            "topic": topic.encode(),
            "partition": b"%d" % partition,
            "offset": b"%d" % offset,
        }
        if index is not None:
            headers["index"] = b"%d" % index
        if replay_of is not None and len(replay_of) <= MAX_PLACE_BYTES:
            headers["replay_of"] = replay_of
        if rejected is not None and len(rejected) > MAX_LETTER_BYTES:
            headers[SIZE] = b"%d" % len(rejected)
            rejected = rejected[:MAX_LETTER_BYTES]
        if key is not None and len(key) > MAX_KEY_BYTES:
            headers[KEY_SIZE] = b"%d" % len(key)
            key = key[:MAX_KEY_BYTES]
        self._producer.send(self._topic, rejected, key=key, headers=headers, reason=reason)

    def flush(self) -> None:
        """Wait until every letter is acknowledged.

        Raises:
            DeliveryError: one was not.
        """
        self._producer.flush()
