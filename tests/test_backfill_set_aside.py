"""What a backfill says of events that it cannot take, and of a log that holds none of the range."""

from __future__ import annotations

import json
import random
import sys
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from flows.backfill.plan import BackfillRefused
from flows.backfill.set_aside import ACCEPTED, Judged
from flows.backfill.targets import MANIFEST, ParquetTarget, TopicTarget
from flows.config_file import dump
from flows.run_folder import RunFolder
from flows.settings import Settings
from tests.test_backfill import EVERYTHING, begun, filled, kill_and_stop
from tests.test_cli import exfm
from tests.test_das import NUM_STAGES, START_MS, Log
from tests.test_das_bad_events import BadLog


def rows(*events: tuple[int, int]) -> pa.Table:
    """Offset and time of each."""
    return pa.table({"offset": [o for o, _ in events], "ts_ms": [t for _, t in events]})


def test_events_count_up_to_the_last_that_matters_however_they_are_read() -> None:
    rng = random.Random(3)
    for _ in range(200):
        log = [(offset, rng.randrange(100)) for offset in range(rng.randrange(1, 40))]
        bad = {offset for offset, _ in log if rng.random() < 0.3}
        ends = [offset for offset, ts_ms in log if ts_ms >= 90 and offset not in bad]
        last = min(ends, default=len(log))
        wanted = Counter("bad" if o in bad else ACCEPTED for o, _ in log if o <= last)
        judged, done = Judged({}, 90), 0
        while done < len(log) and done <= last:
            read = log[done : done + rng.randrange(1, 9)]
            for offset, _ in read:
                if offset in bad:
                    judged.put(None, "t", 0, offset, "bad")
            good = [event for event in read if event[0] not in bad]
            cut = rng.randrange(len(good) + 1)
            judged.settle([rows(*good[cut:]), rows(*good[:cut])] if good else [])
            done += len(read)
            judged = Judged(judged.counts, 90)  # as after a restart
        assert judged.counts == wanted


def counted(log: BadLog, settings: Settings) -> dict[str, dict[str, int]]:
    """Events of the whole log, by topic and what became of them."""
    topics = settings.topics
    found: dict[str, Counter[str]] = {
        topics.impressions.name: Counter({ACCEPTED: len(log.impressions)}),
        topics.labels.name: Counter({ACCEPTED: len(log.labels)}),
    }
    for (topic, _, _), (reason, _) in log.aside.items():
        found[topic][reason.decode()] += 1
    return {topic: dict(counts) for topic, counts in found.items()}


@pytest.fixture
def bad(kafka_settings: Settings) -> tuple[Settings, BadLog]:
    log = BadLog(kafka_settings)
    for stage in range(NUM_STAGES):
        log.write(stage)
    return kafka_settings, log


def batches_of(settings: Settings, num: int) -> Settings:
    """Settings whose sources read so many messages at a time."""
    raw = settings.model_dump()
    raw["das"] |= {"recovery_every_s": 0.05, "max_batch": num}
    return Settings.model_validate(raw)


@pytest.mark.kafka
def test_events_that_were_set_aside_are_counted_by_topic_and_reason(
    bad: tuple[Settings, BadLog], tmp_path: Path
) -> None:
    settings, log = bad
    assert filled(settings, ParquetTarget(tmp_path / "all")).events == counted(log, settings)
    manifest = json.loads((tmp_path / "all" / MANIFEST).read_text())
    assert manifest["events"] == counted(log, settings)
    assert (manifest["complete"], manifest["through_ms"]) == (True, None)
    assert (manifest["plan"]["from_ms"], manifest["plan"]["to_ms"]) == (None, None)
    part = replace(EVERYTHING, from_ms=START_MS + 20_000, to_ms=START_MS + 60_000)
    found = [
        filled(batches_of(settings, num), ParquetTarget(tmp_path / f"of-{num}"), part)
        for num in (16_384, 8)
    ]
    assert found[0] == found[1]
    for topic, counts in counted(log, settings).items():
        assert 0 < sum(found[0].events[topic].values()) < sum(counts.values())
    one, other = ((tmp_path / f"of-{num}" / MANIFEST).read_bytes() for num in (16_384, 8))
    assert one == other


@pytest.mark.kafka
def test_manifest_is_the_same_after_kills_and_stops(
    bad: tuple[Settings, BadLog], tmp_path: Path
) -> None:
    settings, folder = batches_of(bad[0], 8), RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(settings), encoding="utf-8")
    out = tmp_path / "examples"
    target = ParquetTarget(out)
    command = [sys.executable, "-m", "flows.cli", "backfill", f"--run={folder.root}"]
    kill_and_stop([*command, f"--parquet={out}"], target.folder)
    assert not out.exists()
    filled(bad[0], target)
    filled(bad[0], ParquetTarget(tmp_path / "at-once"))
    assert (out / MANIFEST).read_bytes() == (tmp_path / "at-once" / MANIFEST).read_bytes()


@pytest.mark.kafka
def test_table_and_a_line_tell_of_what_was_set_aside(
    bad: tuple[Settings, BadLog], tmp_path: Path
) -> None:
    settings, log = bad
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").config.write_text(dump(settings), encoding="utf-8")
    backfill = ("backfill", "--run=./run")
    done = exfm(*backfill, "--parquet=all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for topic, counts in counted(log, settings).items():
        aside = sum(counts.values()) - counts[ACCEPTED]
        (line,) = (line for line in done.stderr.splitlines() if f"topic '{topic}'" in line)
        assert f"{aside:,} of {sum(counts.values()):,} events (" in line
        assert f"not_json {counts['not_json']}" in line
    assert "Events that were set aside" in done.stdout
    nothing = exfm(*backfill, "--parquet=none", "--to=2001-01-01", cwd=tmp_path)
    assert nothing.returncode == 0, nothing.stderr
    assert "No impression of the range was in the log" in nothing.stdout
    assert json.loads((tmp_path / "none" / MANIFEST).read_text())["plan"]["from_ms"] is None


def of_the_moon(settings: Settings) -> Settings:
    """Settings that accept no impression of the log."""
    raw = settings.model_dump(mode="json")
    raw["domains"] = ["moon"]
    raw["students"] = [{**student, "domains": []} for student in raw["students"]]
    return Settings.model_validate(raw)


@pytest.mark.kafka
@pytest.mark.parametrize("to", ["topic", "parquet"])
def test_log_of_another_configuration_is_refused_and_the_right_one_begins_anew(
    bad: tuple[Settings, BadLog], tmp_path: Path, to: str
) -> None:
    settings, log = bad
    run, name = RunFolder(tmp_path / "run"), f"again-{uuid.uuid4().hex[:8]}"
    parquet = ParquetTarget(tmp_path / "examples")
    target = TopicTarget(run, name) if to == "topic" else parquet
    topic = settings.topics.impressions.name
    with pytest.raises(
        BackfillRefused, match=rf"^topic '{topic}': ([\d,]+) of \1 events .*unknown_domain \d"
    ) as refused:
        filled(of_the_moon(settings), target)
    assert (f"topic {name!r} is written to by now" in str(refused.value)) == (to == "topic")
    assert list(tmp_path.iterdir()) == []
    found = filled(settings, TopicTarget(run, f"{name}-b") if to == "topic" else parquet)
    assert found.examples > 0
    assert found.events == counted(log, settings)


@pytest.mark.kafka
def test_examples_without_any_label_that_could_be_read_are_refused(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    log = Log(kafka_settings, num=100)
    log.labels = [(p, {**label, "task": "view"}) for p, label in log.labels]
    for stage in range(NUM_STAGES):
        log.write(stage)
    topic, num = kafka_settings.topics.labels.name, len(log.labels)
    with pytest.raises(
        BackfillRefused, match=rf"topic '{topic}': {num} of {num} events \(unknown_task {num}\)"
    ):
        filled(kafka_settings, ParquetTarget(tmp_path / "examples"))


@pytest.mark.kafka
def test_other_domains_are_another_configuration(
    bad: tuple[Settings, BadLog], tmp_path: Path
) -> None:
    settings, _ = bad
    target = ParquetTarget(tmp_path / "examples")
    begun(settings, target)
    with pytest.raises(BackfillRefused, match=r"another configuration[^$]*domains: \['feed"):
        filled(of_the_moon(settings), target)
