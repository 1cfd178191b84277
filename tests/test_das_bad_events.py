"""Late and malformed events through the whole flow: set aside once each, and nothing else moves."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.records import MAX_EVENT_BYTES
from flows.settings import Settings
from tests.processes import started
from tests.test_das import (
    DAS,
    NUM_STAGES,
    Log,
    Row,
    elsewhere,
    eventually,
    examples,
    num_messages,
    written,
)

__all__ = ["written"]

Place = tuple[str, int, int]
"""Topic, partition, offset."""
MALFORMED: list[tuple[str, bytes | None]] = [
    ("not_json", b"broken"),
    ("not_utf8", b'{"impression_id": "\xff"}'),
    ("not_an_object", b"[1, 2]"),
    ("empty", None),
    ("empty", b""),
    ("missing_field", b'{"impression_id": "x"}'),
    ("not_json", b'{"impression_id": "x"} {"impression_id": "y"}'),
    ("duplicate_field", b'{"impression_id": "x", "impression_id": "y"}'),
    ("wrong_type", b'{"impression_id": 3}'),
    ("not_json", b'{"impression_id": "\\ud800"}'),
    ("too_large", b'{"impression_id": "%s"}' % (b"x" * MAX_EVENT_BYTES + b"x")),
]


class BadLog(Log):
    """The same log, with events that count for nothing between the others."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.aside: dict[Place, tuple[bytes, bytes | None]] = {}
        self._next: dict[tuple[str, int], int] = {}
        self._clean = [0] * settings.topics.impressions.partitions

    def _send(self, topic: str, partition: int, event: Row) -> None:
        count = self._next.get((topic, partition), 0)
        if count % 7 == 3:
            reason, value = MALFORMED[count // 7 % len(MALFORMED)]
            self._set_aside(topic, partition, reason, value)
        if count > 30 and count % 11 == 5:
            late = {**event, "ts_ms": event["ts_ms"] - 20_000}
            if "task" not in event:
                late["impression_id"] = f"late-{count}"
            self._set_aside(topic, partition, "late", self.encoded(late))
        self._write(topic, partition, self.encoded(event))

    def _prediction(self, partition: int, event: Row) -> Row:
        place = self._next[self._settings.topics.impressions.name, partition] - 1
        row = super()._prediction(partition, event)
        return {**row, "offset": place}

    def _set_aside(self, topic: str, partition: int, reason: str, value: bytes | None) -> None:
        place = (topic, partition, self._next.get((topic, partition), 0))
        self.aside[place] = (reason.encode(), value)
        self._write(topic, partition, value)

    def _write(self, topic: str, partition: int, value: bytes | None) -> None:
        self._producer.send(topic, value, partition=partition)
        self._next[topic, partition] = self._next.get((topic, partition), 0) + 1


def letters(settings: Settings) -> dict[Place, tuple[bytes | None, bytes | None]]:
    """Dead letters by identity; repeats must be equal."""
    topic, config = settings.topics.dead_letters, client_config(settings.kafka)
    found: dict[Place, tuple[bytes | None, bytes | None]] = {}
    for p in range(topic.partitions):
        consumer = PartitionConsumer(config, topic.name, p, 0)
        while not consumer.at_end():
            for message in consumer.poll(1000):
                headers: dict[str, Any] = dict(message.headers() or ())
                place = (
                    headers["topic"].decode(),
                    int(headers["partition"]),
                    int(headers["offset"]),
                )
                letter = (headers["reason"], message.value())
                assert found.setdefault(place, letter) == letter
        consumer.close()
    return found


@pytest.mark.kafka
def test_bad_events_are_set_aside_and_change_no_example(written: Any, tmp_path: Path) -> None:
    raw = elsewhere(written.settings).model_dump()
    for topic in ("impressions", "labels", "fm_predictions"):
        raw["topics"][topic]["name"] = f"{topic}-{uuid.uuid4().hex[:8]}"
    settings = Settings.model_validate(raw)
    ensure_topics(settings)
    log, seen = BadLog(settings), 0
    for stage in range(NUM_STAGES - 1):
        log.write(stage)
        with started(DAS, settings, tmp_path) as process:
            eventually(lambda seen=seen: num_messages(settings) > seen)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        seen = num_messages(settings)
    log.write(NUM_STAGES - 1)
    with started(DAS, settings, tmp_path) as process:
        assert process.wait(60) == 0
    assert examples(settings) == written.examples
    assert {reason for reason, _ in log.aside.values()} == {b"late"} | {
        reason.encode() for reason, _ in MALFORMED
    }
    assert letters(settings) == log.aside
