"""Writes messages with every acknowledgement accounted for.

However long a broker is away, the log holds a prefix of what was sent to a partition. Progress
stands behind the rows that it vouches for, so a gap would vouch for rows that are not there.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from flows.kafka.client import MAX_MESSAGE_BYTES, refusing
from monitoring.metrics import DEAD_LETTERS, SINK_ERRORS, SINK_EVENTS

logger = logging.getLogger(__name__)

OPTIONS = {
    "enable.idempotence": True,  # order within a partition, no repeats by retries
    "message.timeout.ms": 0,  # one that is given up would leave a gap; callers bound the wait
    "partitioner": "murmur2_random",  # as Java clients choose the partition of a key
    "message.max.bytes": MAX_MESSAGE_BYTES - 64 * 1024,
    "queue.buffering.max.kbytes": 64 * 1024,
}
WHOLE_BATCHES = {"batch.num.messages": 1, "max.in.flight.requests.per.connection": 4}
"""For messages that are batches themselves: a request holds one, and four are on their way.

While five messages of a partition are not acknowledged and more wait, an idempotent producer asks
its clock and its sockets without a pause (librdkafka 2.16, `rd_kafka_toppar_producer_serve`), which
beside a busy broker takes half a core. With one request fewer on its way the next one is ready, and
it waits.
"""
FULL_QUEUE_S = 300.0
"""How long a full queue may take nothing."""


class DeliveryError(RuntimeError):
    """A message was not acknowledged; the checkpoint that relies on it must not be taken."""


class BatchProducer:
    """An idempotent producer: what `flush` returned from is in the log."""

    def __init__(self, config: dict[str, Any], options: dict[str, Any] | None = None) -> None:
        """Connect in the background; a broker that is away is waited for.

        Args:
            config: of `producer_config`.
            options: in place of some of `OPTIONS`.

        Raises:
            SettingsError: librdkafka refuses an option.
        """
        merged = {**config, **OPTIONS, **(options or {})}
        with refusing(merged):
            self._producer = Producer(merged, logger=logger, error_cb=_on_error)
        self._failed = 0
        self._failure = ""

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int | None = None,
        key: bytes | None = None,
        headers: dict[str, bytes] | None = None,
        rows: int = 1,
        reason: str | None = None,
    ) -> None:
        """Hand over one message; waits only while the queue is full.

        Args:
            topic: where to.
            value: the bytes; None is a tombstone.
            partition: None lets the key decide.
            key: of the message.
            headers: of the message.
            rows: events that it holds, for the metrics.
            reason: of a dead letter, for the metrics.

        Raises:
            DeliveryError: an earlier message failed, this one is too large, or the queue is stuck.
        """
        self._raise_failure()
        options: dict[str, Any] = {} if partition is None else {"partition": partition}
        if headers:
            options["headers"] = headers
        delivered = partial(self._delivered, rows, reason)
        deadline = time.monotonic() + FULL_QUEUE_S
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=delivered, **options)
                break
            except BufferError as error:
                self._producer.poll(0.1)
                self._raise_failure()
                if time.monotonic() > deadline:
                    raise DeliveryError(
                        f"topic {topic!r}: the queue is full, and nothing was acknowledged for "
                        f"{FULL_QUEUE_S:.0f} s"
                    ) from error
            except KafkaException as error:
                raise DeliveryError(
                    f"topic {topic!r}: a message of {len(value or b'')} bytes is refused: "
                    f"{error.args[0].str()}"
                ) from error
        self._producer.poll(0)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            DeliveryError: a message failed, or is not acknowledged within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        waiting = len(self._producer)
        while waiting and time.monotonic() < deadline and not self._failed:
            waiting = self._producer.flush(min(1.0, timeout_s))
        self._raise_failure()
        if waiting:
            raise DeliveryError(
                f"{waiting} messages without acknowledgement after {timeout_s:.0f} s"
            )

    @property
    def unacknowledged(self) -> int:
        """Messages that were handed over and are not known to be in the log."""
        return len(self._producer) + self._failed

    def close(self) -> None:
        """Write what was handed over; nothing more comes.

        Raises:
            DeliveryError: as `flush`.
        """
        self.flush()

    def _raise_failure(self) -> None:
        if self._failed:
            raise DeliveryError(f"{self._failed} messages failed, the first: {self._failure}")

    def _delivered(
        self, rows: int, reason: str | None, error: KafkaError | None, message: Message
    ) -> None:
        topic = str(message.topic())
        if error is not None:
            self._failed += 1
            self._failure = self._failure or f"topic {topic!r}: {error.name()}: {error.str()}"
            SINK_ERRORS.labels(topic, error.name()).inc(rows)
        elif reason is None:
            SINK_EVENTS.labels(topic).inc(rows)
        else:
            DEAD_LETTERS.labels(topic, reason).inc(rows)


def _on_error(error: KafkaError) -> None:
    logger.warning("producer: %s", error.str())
