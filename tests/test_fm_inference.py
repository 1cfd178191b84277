"""Which snapshot scores a row, what a waiting partition vouches for, and who waits."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pytest
from bytewax.inputs import StatefulSourcePartition

from flows import fm_inference
from flows.fm_inference import Predictor
from flows.inference.impression_source import Due, ImpressionPartition, ImpressionSource, State
from flows.inference.shuffle import PreviousRows
from flows.inference.teacher import AsOf
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.learning.course import teacher_course
from flows.records import BEGIN_MS, END_HEADER, END_MS, decode, impression_schema, shard_of
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings
from models.encoding import Encoder
from onnx_export.publish import Publisher
from onnx_export.session import Scorer
from onnx_export.store import SnapshotStore
from tests.processes import free_addresses, started

T = TypeVar("T")
START_MS = 1_700_000_000_000
SECOND_MS = 1000


def eventually(look: Callable[[], T | None], within_s: float = 60.0) -> T:
    """What `look` first finds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
    raise AssertionError(f"nothing found within {within_s} s")


def impression(number: int, second: int) -> dict[str, object]:
    return {
        "impression_id": f"i{number}",
        "domain": "feed" if number % 3 else "search",
        "ts_ms": START_MS + second * SECOND_MS,
        "user_id": number % 7,
        "device": "phone",
        "price": 1.5 * number,
        "recent_ads": [f"a{number % 5}"],
        "p_click": 0.5,
    }


def write(settings: Settings, partition: int, seconds: list[int], *, end: bool = False) -> None:
    """Write one impression a second named, and perhaps the end mark."""
    producer = BatchProducer(client_config(settings.kafka))
    topic = settings.topics.impressions.name
    for number, second in enumerate(seconds):
        value = json.dumps(impression(100 * partition + number, second)).encode()
        producer.send(topic, value, partition=partition)
    if end:
        producer.send(topic, None, partition=partition, headers={END_HEADER: b"1"})
    producer.flush()


def publish(settings: Settings, store: SnapshotStore, version: int) -> None:
    """Publish an untrained teacher."""
    course = teacher_course(settings)
    graph = course.learner.serving_graph()
    publisher = Publisher(store, "fm", graph, course.encoding, course.task_names)
    sample = Encoder(course.encoding).encode(table(settings, [1, 2]))
    outcome = publisher.publish(
        version,
        newest_example_ms=version - 1,
        num_examples=1,
        recent=sample,
        torch_logits=course.learner.score(sample),
        quality={},
        ne={},
    )
    assert outcome.published


def table(settings: Settings, seconds: list[int], partition: int = 0) -> pa.Table:
    rows = [
        {**impression(n, s), "partition": partition, "offset": n, "index": 0}
        for n, s in enumerate(seconds)
    ]
    return pa.Table.from_pylist(rows, schema=impression_schema(settings))


def read_until(
    source: StatefulSourcePartition[Due, State], enough: Callable[[list[Due]], bool]
) -> list[Due]:
    found: list[Due] = []

    def look() -> list[Due] | None:
        found.extend(source.next_batch())
        return found if enough(found) else None

    return eventually(look)


def part(
    settings: Settings, store: SnapshotStore, partition: int, state: State | None = None
) -> ImpressionPartition:
    return ImpressionSource(settings, store).build_part("impressions", str(partition), state)


def num_rows(dues: list[Due]) -> int:
    return sum(due.table.num_rows for due in dues)


def test_as_of_asks_for_the_boundary_at_or_below_the_lag(
    tiny_settings: Settings, store: SnapshotStore
) -> None:
    choice = AsOf(store, tiny_settings.teacher)  # every 10 s, lag 5 s
    ts_ms = np.array([14_999, 15_000, 24_999, 25_000])
    assert choice.boundaries(ts_ms).tolist() == [0, 10_000, 10_000, 20_000]
    store.set_frontier("fm", 10_000)
    assert choice.decided(choice.boundaries(ts_ms)).tolist() == [True, True, True, False]
    assert choice.version(10_000) is None


@pytest.mark.kafka
def test_waiting_partition_vouches_for_what_it_read_and_holds_nobody_else(
    kafka_settings: Settings, store: SnapshotStore
) -> None:
    write(kafka_settings, 0, [1, 2, 30, 31, 60])
    write(kafka_settings, 1, [3, 4])
    store.set_frontier("fm", START_MS + 10 * SECOND_MS)  # decides what is before second 25
    waiting, other = part(kafka_settings, store, 0), part(kafka_settings, store, 1)
    dues = read_until(waiting, lambda dues: num_rows(dues) == 2 and dues[-1].progress_ms > BEGIN_MS)
    dues = dues + read_until(waiting, lambda more: waiting.next_awake() is not None)
    # Lateness is 5 s: the watermark after second 60 is 55, but second 30 is not predicted yet.
    assert dues[-1].progress_ms == START_MS + 30 * SECOND_MS
    assert waiting.next_batch() == []
    assert num_rows(read_until(other, lambda dues: num_rows(dues) == 2)) == 2
    store.set_frontier("fm", START_MS + 60 * SECOND_MS)
    rest = read_until(waiting, lambda dues: num_rows(dues) == 3)
    assert rest[-1].progress_ms == START_MS + 55 * SECOND_MS
    for source in (waiting, other):
        source.close()


@pytest.mark.kafka
def test_parked_partition_restarts_before_the_rows_that_wait(
    kafka_settings: Settings, store: SnapshotStore
) -> None:
    write(kafka_settings, 0, [1, 2, 30, 31], end=True)
    store.set_frontier("fm", START_MS)
    first = part(kafka_settings, store, 0)
    read_until(first, lambda dues: num_rows(dues) >= 2)
    assert first.next_batch() == []
    state = first.snapshot()
    first.close()
    store.set_frontier("fm", END_MS)
    second = part(kafka_settings, store, 0, state)
    dues = read_until(second, lambda dues: bool(dues) and dues[-1].progress_ms == END_MS)
    ids = {i for due in dues for i in due.table["impression_id"].to_pylist()}
    assert {"i2", "i3"} <= ids
    with pytest.raises(StopIteration):
        second.next_batch()
    done = second.snapshot()
    second.close()
    third = part(kafka_settings, store, 0, done)
    dues = read_until(third, lambda dues: bool(dues) and dues[-1].progress_ms == END_MS)
    assert num_rows(dues) == 0
    third.close()


def test_predictor_takes_the_version_of_each_row(
    tiny_settings: Settings, store: SnapshotStore
) -> None:
    publish(tiny_settings, store, START_MS)
    rows = table(tiny_settings, list(range(6)))
    versions = np.array([BEGIN_MS, BEGIN_MS, START_MS, START_MS, START_MS, BEGIN_MS])
    due = Due(partition=1, table=rows, features=rows, versions=versions, progress_ms=77)
    messages = Predictor(tiny_settings, store).messages(due)
    assert sorted(part for part, _ in messages) == ["0", "1"]
    found: dict[int, dict[str, object]] = {}
    for partition, (_, value, num) in messages:
        predictions, header = decode(value)
        assert header == {"partition": 1, "progress_ms": 77}
        assert predictions.num_rows == num
        shards = shard_of(predictions["impression_id"], tiny_settings.das.shards)
        assert set(shards % 2) <= {int(partition)}
        found |= {row["offset"]: row for row in predictions.to_pylist()}
    expected = Scorer.open(store.path("fm", START_MS)).score_columns(rows)
    for offset, version in enumerate(versions.tolist()):
        row = found[offset]
        if version == BEGIN_MS:
            assert (row["fm_version"], row["fm_logit_click"]) == (None, None)
        else:
            assert row["fm_version"] == START_MS
            assert [row["fm_logit_click"], row["fm_logit_conversion"]] == expected[offset].tolist()


@pytest.mark.kafka
def test_retired_snapshot_skips_only_what_the_newest_one_vouches_for(
    kafka_settings: Settings, store: SnapshotStore
) -> None:
    write(kafka_settings, 0, [6, 7, 16, 17, 26, 27])  # lag 5 s: boundaries at 0, 10 and 20 s
    for second in (0, 10, 20):
        publish(kafka_settings, SnapshotStore(store.root, durable=False), START_MS + second * 1000)
    store.set_frontier("fm", START_MS + 20 * SECOND_MS)
    few = SnapshotStore(store.root, 2, durable=False)
    publish(kafka_settings, few, START_MS + 20 * SECOND_MS)  # again: retires the first
    source = part(kafka_settings, store, 0)
    dues = read_until(source, lambda dues: bool(dues) and dues[-1].progress_ms > START_MS)
    assert [due.table["offset"].to_pylist() for due in dues] == [[2, 3, 4, 5]]
    source.close()
    predictor, rows = Predictor(kafka_settings, store), table(kafka_settings, [6, 19, 20])
    versions = np.array([START_MS, START_MS, START_MS + 10_000])
    due = Due(partition=0, table=rows, features=rows, versions=versions, progress_ms=0)
    kept = [decode(value)[0] for _, (_, value, _) in predictor.messages(due)]
    assert pa.concat_tables(kept)["offset"].to_pylist() == [2]
    versions[2] = START_MS
    with pytest.raises(RuntimeError, match=rf"{START_MS + 20_000} is gone, but only those before"):
        predictor.messages(due)
    write(kafka_settings, 1, [4, 5, 24])
    publish(kafka_settings, few, START_MS + 30 * SECOND_MS)
    publish(kafka_settings, few, START_MS + 40 * SECOND_MS)
    lost = part(lagging(kafka_settings, 45), store, 1)
    assert num_rows(read_until(lost, lambda dues: bool(dues))) == 3  # before the first: null
    lost.close()
    write(kafka_settings, 1, [60])
    with pytest.raises(RuntimeError, match=rf"impression of {START_MS + 60_000} is gone"):
        read_until(part(lagging(kafka_settings, 45), store, 1), lambda dues: num_rows(dues) == 4)


def lagging(settings: Settings, lag_s: float) -> Settings:
    teacher = settings.teacher.model_copy(update={"lag_s": lag_s})
    return settings.model_copy(update={"teacher": teacher})


def test_predictor_swaps_to_the_newest_version(
    tiny_settings: Settings, store: SnapshotStore
) -> None:
    predictor = Predictor(tiny_settings, store)
    rows = table(tiny_settings, [1])

    def version() -> int | None:
        due = Due(partition=0, table=rows, features=rows, versions=None, progress_ms=0)
        tables = [decode(value)[0] for _, (_, value, num) in predictor.messages(due) if num]
        found: int | None = tables[0]["fm_version"][0].as_py()
        return found

    assert version() is None
    publish(tiny_settings, store, START_MS)
    assert version() == START_MS
    publish(tiny_settings, store, START_MS + 10_000)
    assert version() == START_MS + 10_000
    store.rollback("fm")
    assert version() == START_MS


def test_predictor_reports_progress_without_rows(
    tiny_settings: Settings, store: SnapshotStore
) -> None:
    rows = table(tiny_settings, [])
    due = Due(partition=0, table=rows, features=rows, versions=None, progress_ms=5)
    messages = Predictor(tiny_settings, store).messages(due)
    assert [(p, decode(value)[1], num) for p, (_, value, num) in messages] == [
        (p, {"partition": 0, "progress_ms": 5}, 0) for p in ("0", "1")
    ]


def test_predictions_of_long_ids_stay_below_the_limit_of_a_broker(
    tiny_settings: Settings, store: SnapshotStore
) -> None:
    rows = table(tiny_settings, [0] * 4000)
    long = pa.array([f"{n}-{random.Random(n).randbytes(500).hex()}" for n in range(rows.num_rows)])
    rows = rows.set_column(0, rows.schema.field(0), long)
    due = Due(partition=0, table=rows, features=rows, versions=None, progress_ms=5)
    messages = Predictor(tiny_settings, store).messages(due)
    assert max(len(value) for _, (_, value, _) in messages) < 2**20
    headers = [decode(value)[1]["progress_ms"] for part, (_, value, _) in messages if part == "0"]
    assert headers == [*[BEGIN_MS] * (len(headers) - 1), 5]
    assert sum(num for _, (_, _, num) in messages) == 4000


def test_control_scores_the_previous_row_of_the_domain_wherever_batches_end(
    tiny_settings: Settings,
) -> None:
    rows = table(tiny_settings, list(range(40)))
    whole = PreviousRows(None).of(rows)
    domains, ids = rows["domain"].to_pylist(), rows["impression_id"].to_pylist()
    last: dict[str, str] = {}
    for domain, ident, other in zip(domains, ids, whole["impression_id"].to_pylist(), strict=True):
        assert other == last.get(domain, ident)
        last[domain] = ident
    state, parts = None, []
    for start, stop in ((0, 1), (1, 2), (2, 17), (17, 17), (17, 40)):
        previous = PreviousRows(state)
        parts.append(previous.of(rows.slice(start, stop - start)))
        state = previous.state()
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()


@pytest.mark.kafka
def test_two_processes_predict_what_one_does(
    kafka_settings: Settings, store: SnapshotStore, tmp_path: Path
) -> None:
    for second in (0, 10, 20):
        publish(kafka_settings, store, START_MS + second * SECOND_MS)
    for partition in (0, 1):
        write(kafka_settings, partition, list(range(40)), end=True)
    found = []
    for num in (1, 2):
        settings = predicting_elsewhere(kafka_settings, store)
        (store.root / "fm" / "frontier.json").unlink(missing_ok=True)
        store.set_frontier("fm", START_MS)  # decides what is before second 15
        addresses = free_addresses(num) if num > 1 else ""
        with ExitStack() as stack:
            processes = [
                stack.enter_context(
                    started("flows.fm_inference", settings, tmp_path / str(num), i, addresses)
                )
                for i in range(num)
            ]
            waiting = {(q, p): START_MS + 15 * SECOND_MS for q in (0, 1) for p in (0, 1)}
            eventually(lambda s=settings, w=waiting: predicted(s)[1] == w or None)  # type: ignore[misc]
            store.set_frontier("fm", END_MS)
            assert [process.wait(60) for process in processes] == [0] * num
        found.append(predicted(settings))
    rows, progress = found[0]
    assert found[1] == found[0]
    assert set(progress.values()) == {END_MS}
    versions = [rows[p, second]["fm_version"] for p in (0, 1) for second in range(40)]
    assert versions == 2 * [
        None
        if second < 5
        else START_MS + (second - 5) // 10 * 10_000
        if second < 25
        else START_MS + 20_000
        for second in range(40)
    ]


def predicting_elsewhere(settings: Settings, store: SnapshotStore) -> Settings:
    """The same inputs, with predictions and a store of their own."""
    raw = settings.model_dump()
    raw["topics"]["fm_predictions"]["name"] += f"-{uuid.uuid4().hex[:8]}"
    raw["store"]["path"] = str(store.root)
    found = Settings.model_validate(raw)
    ensure_topics(found)
    return found


def predicted(
    settings: Settings,
) -> tuple[dict[tuple[int, int], dict[str, object]], dict[tuple[int, int], int]]:
    """Predictions by place, and progress by partition written and read; repeats must be equal."""
    topic, config = settings.topics.fm_predictions, client_config(settings.kafka)
    rows: dict[tuple[int, int], dict[str, object]] = {}
    progress: dict[tuple[int, int], int] = {}
    for partition in range(topic.partitions):
        consumer = PartitionConsumer(config, topic.name, partition, 0)
        while not consumer.at_end():
            for message in consumer.poll(100):
                table, header = decode(message.value() or b"")
                for row in table.to_pylist():
                    assert rows.setdefault((row["partition"], row["offset"]), row) == row
                at = (partition, header["partition"])
                progress[at] = max(progress.get(at, BEGIN_MS), header["progress_ms"])
        consumer.close()
    return rows, progress


@pytest.mark.kafka
def test_flow_predicts_a_finite_log_and_ends(kafka_settings: Settings, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    store = SnapshotStore(folder.store, durable=False)
    store.set_frontier("fm", END_MS)
    for partition in (0, 1):
        write(kafka_settings, partition, list(range(20)), end=True)
    for _ in range(2):  # a second start finds nothing to do
        fm_inference.run(kafka_settings, folder, Placement())
    topic, config = kafka_settings.topics.fm_predictions.name, client_config(kafka_settings.kafka)
    ids: set[str] = set()
    ended: dict[int, set[int]] = {}
    for partition in (0, 1):
        consumer = PartitionConsumer(config, topic, partition, 0)

        def drained(
            consumer: PartitionConsumer = consumer, partition: int = partition
        ) -> bool | None:
            for message in consumer.poll(100):
                rows, header = decode(message.value() or b"")
                ids.update(rows["impression_id"].to_pylist())
                if header["progress_ms"] == END_MS:
                    ended.setdefault(partition, set()).add(header["partition"])
            return True if len(ended.get(partition, ())) == 2 else None

        eventually(drained)
        consumer.close()
    assert len(ids) == 40
