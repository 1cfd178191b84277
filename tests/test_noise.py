"""Noise: as much as configured, every broken message refused, clean rows untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows.datasets.market import Market
from flows.datasets.noise import FRAMED_KINDS, KINDS, WRITTEN, NoiseSource
from flows.event_settings import Noise
from flows.events.encoding import FramedEvents, json_events, named_tasks
from flows.events.framed_events import Framed, FramedParser
from flows.events.json_events import JsonReader
from flows.events.rules import EventRules, impression_rules, label_rules
from flows.events.schema_registry import connect
from flows.registry_settings import SchemaRegistry
from flows.settings import Settings, load

CONFIG = Path(__file__).parents[1] / "configs" / "market.toml"
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(CONFIG)


@pytest.fixture(scope="module")
def events(settings: Settings) -> tuple[pa.Table, pa.Table]:
    return Market(settings).slice(START_MS, START_MS + 5000)


def test_no_noise_changes_nothing(events: tuple[pa.Table, pa.Table]) -> None:
    source = NoiseSource(Noise())
    impressions, labels = events
    assert source.impressions(impressions) == impressions
    assert source.labels(labels).drop_columns(WRITTEN) == labels.combine_chunks()
    assert source.labels(labels)[WRITTEN].to_pylist() == labels["ts_ms"].to_pylist()
    assert source.malformed(json_events(impressions)) == []
    assert sum(source.added.values()) == 0


def test_noise_adds_what_it_counts(events: tuple[pa.Table, pa.Table]) -> None:
    noise = Noise(
        orphan_labels=0.1,
        repeated_labels=0.2,
        repeated_impressions=0.3,
        late_labels=0.1,
        late_by_s=7.0,
    )
    source = NoiseSource(noise)
    impressions, labels = events
    shown, known = source.impressions(impressions), source.labels(labels)
    ids = set(labels["impression_id"].to_pylist())
    orphans = [i for i in known["impression_id"].to_pylist() if i not in ids]
    late = np.asarray(known[WRITTEN].to_numpy() - known["ts_ms"].to_numpy())
    added = source.added
    assert len(shown) == len(impressions) + added["repeated_impressions"]
    assert len(known) == len(labels) + added["repeated_labels"] + added["orphan_labels"]
    assert len(orphans) == added["orphan_labels"]
    assert (late == 7000).sum() == added["late_labels"]
    assert set(late.tolist()) == {0, 7000}
    for kind, rate, rows in (
        ("repeated_impressions", 0.3, len(impressions)),
        ("orphan_labels", 0.1, len(labels)),
    ):
        assert abs(added[kind] - rate * rows) < 5 * np.sqrt(rate * rows)


def test_noise_repeats_stand_behind_their_first(events: tuple[pa.Table, pa.Table]) -> None:
    shown = NoiseSource(Noise(repeated_impressions=0.3)).impressions(events[0])
    assert shown["ts_ms"].to_pylist() == sorted(shown["ts_ms"].to_pylist())
    ids = shown["impression_id"].to_pylist()
    assert list(dict.fromkeys(ids)) == events[0]["impression_id"].to_pylist()


def test_noise_depends_on_the_seed_alone(events: tuple[pa.Table, pa.Table]) -> None:
    clean = json_events(events[0])
    noise = Noise(malformed=0.05, repeated_labels=0.1)
    once, again = NoiseSource(noise), NoiseSource(noise)
    assert once.labels(events[1]) == again.labels(events[1])
    assert once.malformed(clean) == again.malformed(clean)
    silent = NoiseSource(noise.model_copy(update={"malformed": 0.0}))
    assert silent.labels(events[1]) == NoiseSource(noise).labels(events[1])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("which", ["impressions", "labels"])
def test_malformed_events_are_refused_by_the_decoder(
    settings: Settings, events: tuple[pa.Table, pa.Table], which: str, kind: str
) -> None:
    impressions, labels = events
    if which == "impressions":
        table, rules = impressions, impression_rules(settings)
    else:
        table = named_tasks(labels, [t.name for t in settings.tasks])
        rules = label_rules(settings)
    event = json_events(table.slice(0, 1))[0]
    assert refused(event, rules) == []
    assert refused(KINDS[kind](json.loads(event)), rules)


@pytest.mark.parametrize("kind", list(FRAMED_KINDS))
@pytest.mark.parametrize("form", ["avro", "protobuf"])
def test_malformed_messages_of_a_schema_are_refused_by_the_decoder(
    settings: Settings, events: tuple[pa.Table, pa.Table], form: Framed, kind: str
) -> None:
    registry = connect(SchemaRegistry(url="mock://noise"))
    columns = impression_rules(settings).schema
    good = FramedEvents(form, columns, "Impression", "t", registry).write(events[0].slice(0, 1))
    source = NoiseSource(Noise(malformed=1.0))
    broken = {m.kind: m.value for m in source.malformed(good * len(FRAMED_KINDS), is_json=False)}
    table, bad = FramedParser(form, columns, registry).parse([*good, broken[kind]])
    assert (len(table), list(bad)) == (1, [1])


def refused(event: bytes, rules: EventRules) -> list[str]:
    table, bad = JsonReader(rules.schema).parse([event])
    nulls = [f.name for f in rules.schema if not f.nullable and table[f.name].null_count]
    if bad or nulls:
        return [*bad.values(), *nulls]
    return [reason for reason, mask in rules.faults(table) if mask.any()]
