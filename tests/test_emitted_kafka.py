"""A live join over a real Kafka: kill -9 after the wall clock let go of a partition."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from flows.join.emitted import Written
from flows.join.written_examples import FIRST_STEP, recall
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.producer import BatchProducer
from flows.records import BEGIN_MS, ExampleHeader, encode, example_schema, floor_ms
from flows.settings import Settings
from tests.processes import started
from tests.test_das import (
    DAS,
    START_MS,
    Log,
    elsewhere,
    eventually,
    examples,
    messages,
    num_rows,
)

HELD_MS = START_MS + 50_000
"""From here on, one partition is silent until the kill."""
KILL_MS = START_MS + 150_000
LAST_MS = START_MS + 180_000


class PartlySilent(Log):
    """Partition 1 of both topics can be written later."""

    def write_part(self, settings: Settings, partition: int, low_ms: int, high_ms: int) -> None:
        """What a partition has from `low_ms` to `high_ms`."""
        topics = settings.topics
        for topic, events in ((topics.impressions, self.impressions), (topics.labels, self.labels)):
            for p, event in events:
                if p == partition and low_ms <= event["ts_ms"] < high_ms:
                    self._send(topic.name, p, event)
        self._producer.flush()


def live(settings: Settings, **das: str | float) -> Settings:
    """A run that soon gives up on who is silent."""
    raw = settings.model_dump()
    raw["teacher"]["version"] = "newest"
    raw["das"] |= {"idle_s": 0.2, "teacher_grace_s": 0.5, **das}
    return Settings.model_validate(raw)


def counted(settings: Settings) -> Counter[tuple[str, str]]:
    """Examples of each impression and task; running numbers must be consecutive."""
    following, found = Counter[int](), Counter[tuple[str, str]]()
    for p in range(settings.topics.examples.partitions):
        for table, header in messages(settings, p):
            assert header["first"] == following[header["shard"]]
            following[header["shard"]] += table.num_rows
            for row in table.to_pylist():
                for task in ("click", "conversion"):
                    found[row["impression_id"], task] += row[f"mask_{task}"]
    return +found


@pytest.mark.kafka
@pytest.mark.parametrize(("sink", "every_s"), [("idempotent", 30.0), ("transactional", 0.5)])
def test_kill_of_a_live_join_repeats_and_loses_nothing(
    kafka_settings: Settings, tmp_path: Path, sink: str, every_s: float
) -> None:
    settings = live(elsewhere(kafka_settings), sink=sink, recovery_every_s=every_s)
    ensure_topics(settings)
    log = PartlySilent(settings, num=600)
    for p in (0, 1):
        log.write_part(settings, p, START_MS, HELD_MS)
    with started(DAS, settings, tmp_path / "run") as process:
        eventually(lambda: bool(counted(settings)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    before = counted(settings)
    log.write_part(settings, 0, HELD_MS, KILL_MS)
    with started(DAS, settings, tmp_path / "run") as process:
        eventually(lambda: len(counted(settings)) > len(before) + 50)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    log.write_part(settings, 0, KILL_MS, LAST_MS)
    log.write_part(settings, 1, HELD_MS, LAST_MS)
    events = [e for _, e in (*log.impressions, *log.labels) if e["ts_ms"] < LAST_MS]
    limit_ms = floor_ms(max(e["ts_ms"] for e in events) - 5000, 1000)
    examples = [
        (p, (e["impression_id"], task))
        for p, e in log.impressions
        for task, window_ms in (("click", 10_000), ("conversion", 60_000))
        if e["ts_ms"] + window_ms < limit_ms
    ]
    # A snapshot with the other partition left out leaves it out for good.
    certain = {key for p, key in examples if p == 0 or sink == "idempotent"}
    with started(DAS, settings, tmp_path / "run") as process:
        eventually(lambda: counted(settings).keys() >= certain)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    found = counted(settings)
    assert found.keys() <= {key for _, key in examples}
    assert set(found.values()) == {1}


@pytest.mark.kafka
@pytest.mark.parametrize("num", [0, 1, 20 * FIRST_STEP])
def test_search_goes_back_as_far_as_needed(kafka_settings: Settings, num: int) -> None:
    """Two shards share a partition; shard 0 writes two rows a message, shard 2 only marks."""
    settings = live(kafka_settings)
    topic, schema = settings.topics.examples, example_schema(settings)
    producer = BatchProducer(client_config(settings.kafka))
    for i in range(num):
        rows = [
            {"impression_id": f"i{n}", "domain": "feed", "ts_ms": n, "correction": 0, "number": n}
            | {"mask_click": True, "mask_conversion": n % 4 == 0, "closed_ts_ms": 1000 * i}
            for n in (2 * i, 2 * i + 1)
        ]
        for shard, some in ((0, rows), (2, [])):
            total = 2 * i + 2 if some else 0
            header = ExampleHeader(
                shard=shard, first=total - len(some), through_ms=1000 * i + 1000, total=total
            )
            message = encode(pa.Table.from_pylist(some, schema), header)
            producer.send(topic.name, message, partition=0, key=b"%d" % shard)
    producer.flush()
    for total in sorted({0, num // 2, max(0, 2 * num - 1), 2 * num}):
        written = searched(settings, 0, total)
        assert written.following == 2 * num
        assert written.through_ms == (1000 * num if num else BEGIN_MS)
        ids = [f"i{n}" for n in range(total, 2 * num)]
        click = written.rows.filter(pc.equal(written.rows["task"], 0))
        assert click["impression_id"].to_pylist() == ids
        assert written.rows.num_rows == len(ids) + sum(int(i[1:]) % 4 == 0 for i in ids)
    assert searched(settings, 2, 0).rows.num_rows == 0


def searched(settings: Settings, shard: int, total: int) -> Written:
    """What the topic holds of a shard."""
    search = recall(settings)(shard, total)
    assert search is not None
    found: list[Written] = []

    def ended() -> bool:
        found.extend(w for w in [search()] if w is not None)
        return bool(found)

    eventually(ended)
    return found[0]


@pytest.mark.kafka
@pytest.mark.parametrize("is_live", [True, False])
def test_join_refuses_examples_that_were_created_anew(
    kafka_settings: Settings, tmp_path: Path, is_live: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = elsewhere(kafka_settings)
    settings = live(settings) if is_live else settings
    log = Log(settings, num=600)
    log.write(0)
    ended = join(settings, tmp_path, lambda: num_rows(settings) > 0)
    assert ended == 0
    log.write(1)
    created_anew(settings)
    ended = join(settings, tmp_path, lambda: num_rows(settings) > 0)
    assert (ended, num_rows(settings)) == (1, 0)
    said = capfd.readouterr().err
    assert f"topic '{settings.topics.examples.name}' partition" in said
    assert "examples to it: the topic was deleted and created anew" in said
    shutil.rmtree(tmp_path / "state" / "das")
    assert join(settings, tmp_path, lambda: num_rows(settings) > 0) == 0


@pytest.mark.kafka
def test_join_goes_on_where_retention_has_emptied_the_topic(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = live(elsewhere(kafka_settings))
    log = Log(settings, num=600)
    log.write(0)
    assert join(settings, tmp_path, lambda: num_rows(settings) > 0) == 0
    totals = {shard: table.num_rows for shard, table in examples(settings).items()}
    places = [TopicPartition(settings.topics.examples.name, p, OFFSET_END) for p in (0, 1)]
    admin = AdminClient(client_config(settings.kafka))
    for deleted in admin.delete_records(places).values():
        deleted.result()
    log.write(1)
    found: dict[int, int] = {}

    def all_go_on() -> bool:
        for p in (0, 1):
            for table, header in messages(settings, p):
                if table.num_rows:
                    found.setdefault(header["shard"], header["first"])
        return len(found) == len(totals)

    assert join(settings, tmp_path, all_go_on) == 0
    assert found == totals


def join(settings: Settings, folder: Path, until: Callable[[], bool]) -> int:
    """Run the join until a claim holds or it ends by itself; its exit code."""
    with started(DAS, settings, folder) as process:
        eventually(lambda: process.poll() is not None or until())
        process.send_signal(signal.SIGTERM)
        return process.wait(60)


def created_anew(settings: Settings) -> None:
    """The topic of examples, empty."""
    admin, name = AdminClient(client_config(settings.kafka)), settings.topics.examples.name
    admin.delete_topics([name])[name].result()
    eventually(lambda: name not in admin.list_topics(timeout=10).topics)
    ensure_topics(settings)
