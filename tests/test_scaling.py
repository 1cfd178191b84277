"""Processes and partitions that come and go between two runs of one state."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from flows.config_file import dump
from flows.das import run
from flows.join.sources import rows_by_shard
from flows.join.state import claim, may_have_grown
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.topic_growth import TopicGrowth
from flows.run.process import announced
from flows.run_folder import RunFolder
from flows.run_lock import InUse
from flows.runner import Placement
from flows.settings import Settings, SettingsError
from monitoring.metrics import SOURCE_UNREAD
from tests.processes import free_addresses, started, tethered
from tests.test_das import DAS, NUM_STAGES, Log, elsewhere, eventually, examples, num_messages


def with_partitions(settings: Settings, **partitions: int) -> Settings:
    """The same topics, of which some have more partitions."""
    raw = settings.model_dump()
    for topic, num in partitions.items():
        raw["topics"][topic]["partitions"] = num
    return Settings.model_validate(raw)


def has(admin: AdminClient, topic: str, partitions: int) -> bool:
    """Whether the brokers know of so many partitions of a topic."""
    return len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == partitions


def grow(admin: AdminClient, topics: dict[str, int]) -> None:
    """Give topics so many partitions."""
    more = [NewPartitions(name, num) for name, num in topics.items()]
    for future in admin.create_partitions(more).values():
        future.result()
    for name, num in topics.items():
        eventually(lambda name=name, num=num: has(admin, name, num))  # type: ignore[misc]


def run_group(settings: Settings, folder: Path, num: int, *, to_end: bool = False) -> None:
    """Some processes, until there is something new and they are stopped, or to the end."""
    addresses = free_addresses(num) if num > 1 else ""
    before = num_messages(settings)
    with ExitStack() as stack:
        group = [
            stack.enter_context(started(DAS, settings, folder, i, addresses)) for i in range(num)
        ]
        if not to_end:
            eventually(lambda: num_messages(settings) > before)
            for process in group:
                process.send_signal(signal.SIGTERM)
        assert [process.wait(100) for process in group] == [0] * num


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_number_of_processes_may_change(kafka_settings: Settings, tmp_path: Path) -> None:
    raw = kafka_settings.model_dump()
    raw["das"]["shards"] = 3
    inputs = Settings.model_validate(raw)
    settings, plain = elsewhere(inputs), elsewhere(inputs)
    log = Log(inputs)
    for stage, num in enumerate((1, 2)):
        log.write(stage)
        run_group(settings, tmp_path / "run", num)
    for stage in range(2, NUM_STAGES):
        log.write(stage)
    run_group(settings, tmp_path / "run", 3, to_end=True)
    run(plain, RunFolder(tmp_path / "plain"), Placement())
    assert examples(settings) == examples(plain)


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_partitions_may_be_added(kafka_settings: Settings, tmp_path: Path) -> None:
    """Stopped, the topics grow, started again: the examples of a run that always had them all."""
    before, other = elsewhere(kafka_settings), elsewhere(kafka_settings)
    log = Log(kafka_settings)
    for stage in range(2):
        log.write(stage)
    run_group(before, tmp_path / "run", 1)
    grown = {"impressions": 3, "labels": 4}
    admin = AdminClient(client_config(before.kafka))
    names = {getattr(before.topics, topic).name: num for topic, num in grown.items()}
    grow(admin, names)
    after, plain = (with_partitions(s, **grown) for s in (before, other))
    log.grow(after)
    for stage in range(2, NUM_STAGES):
        log.write(stage)
    run(after, RunFolder(tmp_path / "run"), Placement())
    run(plain, RunFolder(tmp_path / "plain"), Placement())
    assert examples(after) == examples(plain)


@pytest.mark.kafka
def test_growth_is_told_while_it_runs(
    kafka_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    topic = kafka_settings.topics.labels
    growth = TopicGrowth(kafka_settings.kafka, topic, every_s=0.0)
    growth.look()
    assert SOURCE_UNREAD.labels(topic.name)._value.get() == 0
    admin = AdminClient(client_config(kafka_settings.kafka))
    admin.create_partitions([NewPartitions(topic.name, 5)])[topic.name].result()

    def told() -> bool:
        growth.look()
        return bool(SOURCE_UNREAD.labels(topic.name)._value.get() == 3)

    with caplog.at_level(logging.WARNING):
        eventually(told)
        growth.look()
    assert [r.message for r in caplog.records if "has 5 partitions, of which 2" in r.message] == [
        f"topic '{topic.name}' has 5 partitions, of which 2 are read: stop, set its `partitions` "
        "to 5, and start again"
    ]


@pytest.mark.kafka
def test_topic_that_has_grown_is_refused_before_the_join_has_begun_only(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    topics, state = kafka_settings.topics, tmp_path / "das"
    admin = AdminClient(client_config(kafka_settings.kafka))
    grow(admin, {topics.labels.name: 5})
    with pytest.raises(SettingsError, match="has 5 partitions, configured are 2"):
        ensure_topics(kafka_settings, may_have_grown=may_have_grown(state))
    claim(state, kafka_settings)
    ensure_topics(kafka_settings, may_have_grown=may_have_grown(state))
    fewer = with_partitions(kafka_settings, impressions=3)
    with pytest.raises(SettingsError, match="has 2 partitions, configured are 3"):
        ensure_topics(fewer, may_have_grown=may_have_grown(state))
    grow(admin, {topics.examples.name: 3})
    with pytest.raises(SettingsError, match="has 3 partitions, configured are 2"):
        ensure_topics(kafka_settings, may_have_grown=may_have_grown(state))


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_killed_join_goes_on_though_its_topics_have_grown(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = elsewhere(kafka_settings)
    folder, log = RunFolder(tmp_path), Log(kafka_settings)
    folder.config.write_text(dump(settings))
    command = [sys.executable, "-m", "flows.cli", "run", "das", f"--run={tmp_path}"]
    admin = AdminClient(client_config(settings.kafka))
    for stage in range(2):
        log.write(stage)
        before = num_messages(settings)
        with subprocess.Popen(tethered(command), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            if stage:
                said = f"topic '{settings.topics.labels.name}' has 4 partitions, of which 2 are"
                assert any(said in line for line in process.stderr)
            eventually(lambda before=before: num_messages(settings) > before)  # type: ignore[misc]
            process.kill()
        if not stage:
            grow(admin, {settings.topics.labels.name: 4})


def test_state_takes_more_partitions_of_events_and_nothing_else(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    claim(tmp_path, tiny_settings)
    claim(tmp_path, with_partitions(tiny_settings, impressions=3, labels=5))
    kept = json.loads((tmp_path / "format.json").read_text())["topics"]
    assert (kept["impressions"], kept["labels"]) == (["impressions", 3], ["labels", 5])
    for fewer in ({"impressions": 3}, {"impressions": 3, "labels": 5, "examples": 4}):
        with pytest.raises(SettingsError, match=r"'labels', 5\]"):
            claim(tmp_path, with_partitions(tiny_settings, **fewer))


def test_rows_travel_without_the_batch_they_came_in() -> None:
    ids = pa.array([f"impression-{n}" for n in range(4096)])
    table = pa.table({"impression_id": ids, "ts_ms": range(4096), "text": ["x" * 200] * 4096})
    for shards in (2, 64):
        for item in rows_by_shard("labels", table, shards):
            rows = item[1][3]
            assert len(pickle.dumps(item)) < rows.nbytes + 2000 < 2 * table.nbytes / shards + 2000


def test_groups_of_one_flow_exclude_each_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (
        announced(folder, "das-0", "das"),
        announced(folder, "das-1"),
        pytest.raises(InUse, match="das of run"),
        announced(folder, "das", "das"),
    ):
        pass
