"""A trainer says which examples are missing, waits for them for a while, and then stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from flows.kafka.producer import BatchProducer
from flows.learning import gaps
from flows.learning.example_reader import Gap, Place
from flows.learning.example_source import Lesson, ModelExamples
from flows.learning.gaps import WAIT_S, ExamplesMissing, GapWatch
from flows.records import END_MS, ExampleHeader, encode, example_schema
from flows.settings import Settings
from monitoring.metrics import TRAIN_GAPS, TRAIN_REPEATS

GAP = Gap(shard=1, expected=10, found=15, partition=0, offset=7)


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def counted(model: str) -> float:
    return float(TRAIN_GAPS.labels(model)._value.get())


def test_gap_is_told_and_counted_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    watch, before = GapWatch("once", "examples", clock), counted("once")
    for expected in (10, 11, 11, 12):
        watch.look({replace(GAP, expected=expected): False})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert (
        "topic 'examples' partition 0 offset 7: shard 1 goes on at number 15, expected 10" in said
    )
    assert "exfm backfill --topic" in said
    watch.look({})
    watch.look({replace(GAP, shard=0): False})
    assert len(caplog.records) == 2
    assert counted("once") == before + 2


def test_gap_that_nobody_fills_stops_the_trainer(clock: Clock) -> None:
    watch = GapWatch("model", "examples", clock)
    watch.look({GAP: False})
    clock.now_s = 10 * WAIT_S  # there is more to read, which may fill it
    watch.look({GAP: True})
    clock.now_s += WAIT_S - 1
    watch.look({GAP: False})
    clock.now_s += 1
    with pytest.raises(ExamplesMissing, match=r"5 examples are missing, and nobody wrote them"):
        watch.look({GAP: False})


def test_gap_that_is_being_filled_is_waited_for(clock: Clock) -> None:
    watch = GapWatch("model", "examples", clock)
    for expected in range(10, 15):
        watch.look({replace(GAP, expected=expected): True})
        clock.now_s += WAIT_S - 1
    watch.look({})
    watch.look({GAP: True})
    clock.now_s += 2
    watch.look({GAP: True})


def row(shard: int, number: int) -> dict[str, object]:
    return {
        "impression_id": f"i{number}",
        "domain": "feed",
        "ts_ms": 1000 * number,
        "closed_ts_ms": 1000 * number,
        "correction": 0,
        "shard": shard,
        "number": number,
    }


def write(settings: Settings, producer: BatchProducer, shard: int, numbers: range) -> None:
    """A message a row, each with a mark; behind the last row nothing comes."""
    topic, schema = settings.topics.examples, example_schema(settings)
    for number in numbers:
        last = number == 9
        through_ms = END_MS if last else 1000 * number + 1000
        header = ExampleHeader(shard=shard, first=number, through_ms=through_ms, total=number + 1)
        value = encode(pa.Table.from_pylist([row(shard, number)], schema), header)
        producer.send(topic.name, value, partition=shard % topic.partitions)
    producer.flush()


def everything(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(table.num_rows, dtype=bool)


def lessons(source: ModelExamples, enough: Callable[[list[Lesson]], bool]) -> list[Lesson]:
    found: list[Lesson] = []
    while not enough(found):
        found += source.next_batch()
    return found


@pytest.mark.kafka
def test_source_stops_at_a_gap_and_goes_on_once_it_is_filled(
    kafka_settings: Settings, producer: BatchProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "WAIT_S", 0.2)
    topic = kafka_settings.topics.examples
    start = Place.start(topic.partitions, kafka_settings.das.shards)
    write(kafka_settings, producer, 0, range(10))
    write(kafka_settings, producer, 1, range(4))
    write(kafka_settings, producer, 1, range(7, 10))
    source = ModelExamples(kafka_settings, "filled", start, everything)
    before, repeats = counted("filled"), TRAIN_REPEATS.labels("filled")._value.get()
    with pytest.raises(ExamplesMissing, match=r"shard 1 goes on at number 7, expected 4"):
        lessons(source, lambda _: False)
    source.close()
    assert counted("filled") == before + 1
    assert TRAIN_REPEATS.labels("filled")._value.get() == repeats

    write(kafka_settings, producer, 1, range(10))
    source = ModelExamples(kafka_settings, "filled", start, everything)
    found = lessons(source, lambda found: bool(found) and found[-1].ready is None)
    source.close()
    tables = [lesson.ready.table for lesson in found if lesson.ready is not None]
    rows = pa.concat_tables(tables).select(["number", "shard"]).to_pylist()
    assert [(r["number"], r["shard"]) for r in rows] == [(n, s) for n in range(10) for s in (0, 1)]
