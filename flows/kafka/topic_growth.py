"""Notices that a topic has more partitions than are read; the next start takes them in."""

from __future__ import annotations

import logging
import time

from confluent_kafka import KafkaException

from flows.kafka.client import admin_client, client_config
from flows.kafka_settings import Kafka
from flows.settings import Topic
from monitoring.metrics import SOURCE_UNREAD

logger = logging.getLogger(__name__)

EVERY_S = 30.0
ANSWER_S = 1.0
"""How long the broker may take; without an answer it is asked again later."""


class TopicGrowth:
    """Looks at one topic from time to time."""

    def __init__(self, kafka: Kafka, topic: Topic, every_s: float = EVERY_S) -> None:
        """The first look is due at once."""
        self._admin = admin_client(client_config(kafka))
        self._topic, self._every_s = topic, every_s
        self._due_s = time.monotonic()
        self._told = 0

    def look(self) -> None:
        """Ask the broker if it is time; say once how many partitions nobody reads."""
        if time.monotonic() < self._due_s:
            return
        try:
            found = self._admin.list_topics(self._topic.name, timeout=ANSWER_S)
        except KafkaException:  # the consumer says what is wrong
            return
        finally:
            self._due_s = time.monotonic() + self._every_s
        there = len(found.topics[self._topic.name].partitions)
        unread = max(0, there - self._topic.partitions)
        SOURCE_UNREAD.labels(self._topic.name).set(unread)
        if unread > self._told:
            logger.warning(
                "topic %r has %d partitions, of which %d are read: stop, set its `partitions` to "
                "%d, and start again",
                self._topic.name,
                there,
                self._topic.partitions,
                there,
            )
        self._told = unread
