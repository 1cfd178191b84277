"""Transactions that an earlier start may have left open in `examples`.

A transactional writer ends that of its predecessor when it takes over the name. One that writes
without would never: whoever reads, its own search for what it has written among them, would wait in
front of it until the broker gives it up, three recovery intervals later.
"""

from __future__ import annotations

from pathlib import Path

from flows.kafka.client import producer_config
from flows.kafka.transactions import TransactionalProducer, writer_name
from flows.settings import Settings
from models.durable import write_atomically

MARK = "transactional"
"""File of a state whose writers have begun transactions, if they still may be open."""


def end_past_transactions(state: Path, settings: Settings) -> None:
    """End what is open, if this start writes without transactions and an earlier one did not.

    Args:
        state: folder of the join's state.
        settings: of this start.

    Raises:
        DeliveryError: no broker answers.
    """
    mark, topic = state / MARK, settings.topics.examples
    if settings.das.sink == "transactional":
        write_atomically(mark, b"")
    elif mark.exists():
        for partition in range(topic.partitions):
            name = writer_name(topic.name, str(partition))
            TransactionalProducer(producer_config(settings.kafka), name, every_s=0.0)
        mark.unlink(missing_ok=True)  # by all processes of a group
