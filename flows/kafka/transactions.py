"""A producer whose messages appear together: those of one recovery interval, or none of them.

Readers with `isolation.level=read_committed`, as all of the project's are, see a message once its
transaction has been committed. Whoever starts under the name of another producer ends that one's
open transaction and fences it: a process that was thought dead can write nothing more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from flows.kafka.client import WAIT_S
from flows.kafka.producer import WHOLE_BATCHES, BatchProducer, DeliveryError

logger = logging.getLogger(__name__)

MIN_TIMEOUT_S = 60.0
INTERVALS = 3
"""The broker ends a transaction that has been open for so many recovery intervals."""
FENCED = (
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
)
WHY_FENCED = "another process writes under it, or the broker ended it after transaction.timeout.ms"


def writer_name(topic: str, partition: str) -> str:
    """What brokers know the writer of a partition by, whatever process it is."""
    return f"exfm/{topic}/{partition}"


class TransactionalProducer(BatchProducer):
    """What `flush` returned from is in the log, and only then does a reader see it."""

    def __init__(self, config: dict[str, Any], name: str, every_s: float) -> None:
        """Take the name over; the open transaction of whoever had it is ended.

        Args:
            config: of `producer_config`.
            name: of the writer, the same after a restart; nobody else may use it.
            every_s: how often `flush` is called at most.

        Raises:
            DeliveryError: no broker answers.
        """
        timeout_ms = round(1000 * max(MIN_TIMEOUT_S, INTERVALS * every_s))
        super().__init__(
            config,
            {
                **WHOLE_BATCHES,
                "transactional.id": name,
                "transaction.timeout.ms": timeout_ms,
                "message.timeout.ms": timeout_ms,  # the client allows no more
            },
        )
        self._name, self._open = name, False
        self._insist("begin", self._producer.init_transactions)

    def send(self, topic: str, value: bytes | None, **place: Any) -> None:
        """As `BatchProducer.send`; the first message begins a transaction."""
        if not self._open:
            self._insist("begin", lambda _: self._producer.begin_transaction())
            self._open = True
        super().send(topic, value, **place)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until everything sent is acknowledged, and show it to the readers.

        Raises:
            DeliveryError: that failed; nothing since the last flush will be seen.
        """
        super().flush(timeout_s)
        if self._open:
            self._insist("commit", self._producer.commit_transaction)
            self._open = False

    def close(self) -> None:
        """Give up what was sent since the last `flush`: no reader will see it."""
        if not self._open:
            return
        self._open = False
        try:
            self._producer.abort_transaction(WAIT_S)
        except KafkaException as failure:  # the successor or the broker ends it then
            logger.warning("transaction of %r: cannot abort: %s", self._name, failure)

    def _insist(self, what: str, step: Callable[[float], None]) -> None:
        """Do a step of a transaction, again if the broker was only busy or away."""
        deadline = time.monotonic() + 2 * WAIT_S
        while True:
            try:
                step(WAIT_S)
                return
            except KafkaException as failure:
                error = failure.args[0]
                if not error.retriable() or time.monotonic() > deadline:
                    why = WHY_FENCED if error.code() in FENCED else ""
                    raise DeliveryError(
                        f"transaction of {self._name!r}: cannot {what}: {why or error.str()}"
                    ) from failure
                logger.warning("transaction of %r: %s, trying again", self._name, error.str())
