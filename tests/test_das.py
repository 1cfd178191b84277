"""The flow over a real Kafka: workers, processes, kills and stops change no example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.config_file import dump
from flows.das import run
from flows.join.read_ahead import ReadAhead
from flows.join.recovery import saved_shards
from flows.join.sources import rows_by_shard
from flows.join.state import claim
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.producer import BatchProducer
from flows.records import (
    END_HEADER,
    END_MS,
    PredictionHeader,
    decode,
    encode,
    floor_ms,
    prediction_schema,
    shard_of,
)
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings, SettingsError
from tests.processes import free_addresses, started

START_MS = 1_700_000_000_000
NUM_STAGES = 4
DAS = "flows.das"
Row = dict[str, Any]


def eventually(look: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"not within {within_s} s"


class Log:
    """A log of events and predictions, written to the topics of `settings` in stages."""

    def __init__(self, settings: Settings, num: int = 1500) -> None:
        self._settings = settings
        self._producer = BatchProducer(client_config(settings.kafka))
        self._rng = np.random.default_rng(7)
        self.impressions: list[tuple[int, Row]] = []  # partition, event; ascending in time
        self.labels: list[tuple[int, Row]] = []
        for i, ts in enumerate(START_MS + np.sort(self._rng.integers(0, 200_000, num))):
            self._make(f"imp-{i}", int(ts))
        self.labels.sort(key=lambda x: (x[1]["ts_ms"], x[1]["impression_id"]))
        self._offsets = [0] * settings.topics.impressions.partitions

    def _make(self, ident: str, ts: int) -> None:
        event = {"impression_id": ident, "domain": "feed", "ts_ms": ts, "user_id": ts % 97}
        event |= {"device": "phone", "price": 1.5, "recent_ads": ["a", "b"], "p_click": 0.1}
        for _ in range(1 + (self._rng.random() < 0.05)):  # some twice
            self.impressions.append((int(self._rng.integers(2)), event))
        for task, window_s in (("click", 10), ("conversion", 60)):
            if self._rng.random() < 0.3:  # some of them after the window
                after = int(self._rng.integers(0, window_s * 1200))
                label = {"impression_id": ident, "task": task, "value": 1, "ts_ms": ts + after}
                self.labels.append((int(self._rng.integers(2)), label))

    def grow(self, settings: Settings) -> None:
        """Go on with more partitions of the event topics: what follows is spread over them."""
        later_ms = START_MS + 100_000
        new = settings.topics.impressions.partitions
        self._offsets += [0] * (new - len(self._offsets))
        for found, num in (
            (self.impressions, new),
            (self.labels, settings.topics.labels.partitions),
        ):
            for i, (_, event) in enumerate(found):
                if event["ts_ms"] >= later_ms:
                    found[i] = (i % num, event)
        self._settings = settings
        self._producer = BatchProducer(client_config(settings.kafka))  # knows all partitions

    def write(self, stage: int, teacher: bool = True) -> None:
        """Write a stage; behind the last, the ends of all logs. A dead teacher writes nothing."""
        topics, ended = self._settings.topics, stage == NUM_STAGES - 1
        predictions: list[list[Row]] = [[] for _ in self._offsets]
        low = START_MS + stage * 50_000
        high = END_MS if ended else low + 50_000
        for p, event in self.impressions:
            if low <= event["ts_ms"] < high:
                self._send(topics.impressions.name, p, event)
                predictions[p].append(self._prediction(p, event))
        for p, event in self.labels:
            if low <= event["ts_ms"] < high:
                self._send(topics.labels.name, p, event)
        for p, rows in enumerate(predictions if teacher else ()):
            self._predict(p, rows, END_MS if ended else rows[-1]["ts_ms"] - 5000)
        if ended:
            for topic in (topics.impressions, topics.labels):
                for p in range(topic.partitions):
                    header = {END_HEADER: b""}
                    self._producer.send(topic.name, None, partition=p, headers=header)
        self._producer.flush()

    def _send(self, topic: str, partition: int, event: Row) -> None:
        self._producer.send(topic, self.encoded(event), partition=partition)

    @staticmethod
    def encoded(event: Row) -> bytes:
        """An event as applications write it."""
        return json.dumps(event).encode()

    def _prediction(self, partition: int, event: Row) -> Row:
        offset = self._offsets[partition]
        self._offsets[partition] += 1
        place = {"partition": partition, "offset": offset, "index": 0}
        logits = {"fm_logit_click": offset / 8, "fm_logit_conversion": -1.0}
        keys = ("impression_id", "ts_ms")
        return {**{k: event[k] for k in keys}, **place, **logits, "fm_version": START_MS}

    def _predict(self, partition: int, rows: list[Row], progress_ms: int) -> None:
        topic, shards = self._settings.topics.fm_predictions, self._settings.das.shards
        table = pa.Table.from_pylist(rows, prediction_schema(self._settings))
        to = shard_of(table["impression_id"], shards) % topic.partitions
        header = PredictionHeader(partition=partition, progress_ms=progress_ms)
        for q in range(topic.partitions):
            message = encode(table.filter(pa.array(to == q)), header)
            self._producer.send(topic.name, message, partition=q)


def examples(settings: Settings) -> dict[int, pa.Table]:
    """Rows of each shard as a consumer takes them; repeats must have the same content."""
    topic = settings.topics.examples
    found: dict[int, list[Row]] = {s: [] for s in range(settings.das.shards)}
    for p in range(topic.partitions):
        for table, header in messages(settings, p):
            rows = found[header["shard"]]
            assert header["first"] <= len(rows), "a gap"
            for number, row in enumerate(table.to_pylist(), header["first"]):
                if number == len(rows):
                    rows.append(row)
                assert rows[number] == row
    return {s: pa.Table.from_pylist(rows) for s, rows in found.items()}


def messages(settings: Settings, partition: int) -> Iterator[tuple[pa.Table, Any]]:
    """All messages of a partition of `examples`."""
    config = client_config(settings.kafka)
    consumer = PartitionConsumer(config, settings.topics.examples.name, partition, None)
    while not consumer.at_end():
        for message in consumer.poll(1000):
            yield decode(message.value() or b"")
    consumer.close()


def num_rows(settings: Settings) -> int:
    """Distinct examples."""
    return sum(table.num_rows for table in examples(settings).values())


def num_messages(settings: Settings) -> int:
    """Messages in `examples`."""
    config, topic = client_config(settings.kafka), settings.topics.examples
    consumers = [PartitionConsumer(config, topic.name, p, None) for p in range(topic.partitions)]
    total = sum(c.lag() for c in consumers)
    for consumer in consumers:
        consumer.close()
    return total


def elsewhere(settings: Settings) -> Settings:
    """The same inputs, with outputs of their own."""
    raw = settings.model_dump()
    for topic in ("examples", "dead_letters"):
        raw["topics"][topic]["name"] = f"{topic}-{uuid.uuid4().hex[:8]}"
    raw["das"]["recovery_every_s"] = 0.2
    found = Settings.model_validate(raw)
    ensure_topics(found)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A log and what one worker made of it, read in one go."""

    settings: Settings
    log: Log
    examples: dict[int, pa.Table]


@pytest.fixture
def written(kafka_settings: Settings, tmp_path: Path) -> Written:
    log = Log(kafka_settings)
    for stage in range(NUM_STAGES):
        log.write(stage)
    settings = elsewhere(kafka_settings)
    run(settings, RunFolder(tmp_path / "first"), Placement())
    return Written(settings=kafka_settings, log=log, examples=examples(settings))


@pytest.mark.kafka
def test_das_makes_one_example_a_window(written: Written) -> None:
    ids = {event["impression_id"] for _, event in written.log.impressions}
    rows = [row for table in written.examples.values() for row in table.to_pylist()]
    windows = [(row["impression_id"], row["mask_click"]) for row in rows]
    assert sorted(windows) == sorted((i, click) for i in ids for click in (False, True))
    shown = {e["impression_id"]: e["ts_ms"] for _, e in written.log.impressions}
    within = {"click": 10_000, "conversion": 60_000}
    for task, window_ms in within.items():
        expected = {
            e["impression_id"]
            for _, e in written.log.labels
            if e["task"] == task and e["ts_ms"] < shown[e["impression_id"]] + window_ms
        }
        assert {r["impression_id"] for r in rows if r[f"label_{task}"]} == expected
    assert all(row["fm_logit_click"] is not None for row in rows if row["mask_click"])


@pytest.mark.kafka
def test_workers_and_processes_change_nothing(written: Written, tmp_path: Path) -> None:
    two_workers = elsewhere(written.settings)
    run(two_workers, RunFolder(tmp_path / "workers"), Placement(workers=2))
    assert examples(two_workers) == written.examples
    two_processes = elsewhere(written.settings)
    addresses = free_addresses(2)
    with (
        started(DAS, two_processes, tmp_path / "processes", 0, addresses) as first,
        started(DAS, two_processes, tmp_path / "processes", 1, addresses) as second,
    ):
        assert [first.wait(60), second.wait(60)] == [0, 0]
    assert examples(two_processes) == written.examples


@pytest.mark.kafka
def test_kill_and_stop_change_nothing(written: Written, tmp_path: Path) -> None:
    raw = elsewhere(written.settings).model_dump()
    for topic in ("impressions", "labels", "fm_predictions"):
        raw["topics"][topic]["name"] = f"{topic}-{uuid.uuid4().hex[:8]}"
    settings = Settings.model_validate(raw)
    ensure_topics(settings)
    log, seen = Log(settings), 0
    for stage, stop in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        log.write(stage)
        with started(DAS, settings, tmp_path / "killed") as process:
            eventually(lambda seen=seen: num_messages(settings) > seen)  # type: ignore[misc]
            process.send_signal(stop)
            assert process.wait(60) == (0 if stop == signal.SIGTERM else -stop)
        seen = num_messages(settings)
    log.write(NUM_STAGES - 1)
    with started(DAS, settings, tmp_path / "killed") as process:
        assert process.wait(60) == 0
    assert examples(settings) == written.examples


@pytest.mark.kafka
def test_live_dead_teacher_and_idle_partition_hold_nobody(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    raw = kafka_settings.model_dump()
    raw["teacher"]["version"] = "newest"
    raw["das"] |= {"idle_s": 0.2, "teacher_grace_s": 0.5}
    settings = Settings.model_validate(raw)
    log = Log(settings, num=300)
    log.labels = [(0, label) for _, label in log.labels]  # the other partition stays empty
    for stage in range(NUM_STAGES - 1):  # no end marks: the wall clock alone lets go
        log.write(stage, teacher=False)
    written_ms = START_MS + (NUM_STAGES - 1) * 50_000
    events = [e for _, e in (*log.impressions, *log.labels) if e["ts_ms"] < written_ms]
    limit_ms = floor_ms(max(e["ts_ms"] for e in events) - 5000, 1000)
    shown = {e["impression_id"]: e["ts_ms"] for _, e in log.impressions}
    closed = [ts + window_ms < limit_ms for ts in shown.values() for window_ms in (10_000, 60_000)]
    with started(DAS, settings, tmp_path) as process:
        eventually(lambda: num_rows(settings) == sum(closed))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert all(t["fm_version"].null_count == t.num_rows for t in examples(settings).values())


@pytest.mark.kafka
def test_flow_runs_under_bytewax(written: Written, tmp_path: Path) -> None:
    settings = elsewhere(written.settings)
    command, environ = under_bytewax(settings, tmp_path)
    subprocess.run(command, env=environ, check=True, timeout=60)
    assert examples(settings) == written.examples
    again = subprocess.run(command, env=environ, check=False, timeout=60, capture_output=True)
    assert again.returncode == 2
    (line,) = again.stderr.decode().splitlines()
    assert line.startswith("exfm: no recovery directory given, ")
    assert line.endswith("state/das/recovery -s 1 -b 0")


@pytest.mark.kafka
def test_flow_goes_on_under_bytewax(kafka_settings: Settings, tmp_path: Path) -> None:
    settings, plain = elsewhere(kafka_settings), elsewhere(kafka_settings)
    log = Log(kafka_settings)
    command, environ = under_bytewax(settings, tmp_path)
    recovery = tmp_path / "run" / "state" / "das" / "recovery"
    command += ["-r", str(recovery), "-s", "1", "-b", "0"]
    log.write(0)
    with subprocess.Popen(command, env=environ) as process:
        eventually(lambda: num_rows(settings) > 0 and bool(saved_shards(recovery)))
        second = subprocess.run(command, env=environ, check=False, timeout=60, capture_output=True)
        assert second.returncode == 1
        assert second.stderr.decode().splitlines()[-1].startswith("exfm: das of run ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for stage in range(1, NUM_STAGES):
        log.write(stage)
    subprocess.run(command, env=environ, check=True, timeout=60)
    run(plain, RunFolder(tmp_path / "plain"), Placement())
    assert examples(settings) == examples(plain)


def under_bytewax(settings: Settings, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the flow under Bytewax's own runner."""
    config = folder / "config.toml"
    config.write_text(dump(settings), encoding="utf-8")
    environ = {**os.environ, "EXFM_CONFIG": str(config), "EXFM_RUN": str(folder / "run")}
    return [sys.executable, "-m", "bytewax.run", "flows.das:flow"], environ


def test_state_of_other_shards_is_refused(tiny_settings: Settings, tmp_path: Path) -> None:
    claim(tmp_path, tiny_settings)
    claim(tmp_path, tiny_settings)
    raw = tiny_settings.model_dump()
    raw["das"]["shards"] = 7
    with pytest.raises(SettingsError, match=r"das\.shards: 2 there, 7 configured"):
        claim(tmp_path, Settings.model_validate(raw))


@pytest.mark.parametrize("shards", [1, 4])
def test_rows_are_split_by_shard_in_order(shards: int) -> None:
    ids, ts_ms = [f"i{n % 40}" for n in range(200)], [n // 7 for n in range(200)]
    table = pa.table({"impression_id": ids, "ts_ms": ts_ms, "n": range(200)})
    late = pa.concat_tables([table.slice(100), table.slice(0, 100)])
    found = {}
    for key, (what, shard, kind, rows) in rows_by_shard("labels", late, shards):
        assert (what, kind, key) == ("rows", "labels", str(shard))
        assert set(shard_of(rows["impression_id"], shards)) == {shard}
        ties = list(zip(rows["ts_ms"].to_pylist(), late_rank(rows["n"].to_pylist()), strict=True))
        assert ties == sorted(ties)
        found[shard] = rows
    assert sorted(n for rows in found.values() for n in rows["n"].to_pylist()) == [*range(200)]
    assert rows_by_shard("labels", table.slice(0, 0), shards) == []


def late_rank(numbers: list[int]) -> list[int]:
    """Where rows stood in the table whose second half came first."""
    return [(n + 100) % 200 for n in numbers]


def test_read_ahead_never_stops_the_slowest(tiny_settings: Settings) -> None:
    ahead = ReadAhead(tiny_settings)
    assert ahead.allows(END_MS)
    ahead.closed(0, START_MS)
    ahead.closed(1, START_MS + 1_000_000)
    assert ahead.allows(START_MS + 60_000)
    assert not ahead.allows(START_MS + 90_000)
    ahead.closed(0, floor_ms(END_MS, 1000))
    assert ahead.allows(START_MS + 1_060_000)
