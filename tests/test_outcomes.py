"""What labels lead to, for many impressions at once, against one label after the other."""

from __future__ import annotations

import os
import random
from typing import Any

import polars as pl
import pytest

from flows.join.label_rules import LabelRules
from flows.join.outcomes import COLUMNS, GROUP, decisions, extra_rows, judged, sequences
from flows.settings import Settings
from tests.one_by_one import Label, outcomes, random_tasks

CASES = int(os.environ.get("EXFM_TEST_CASES", "20"))
"""Random settings, each with `IMPRESSIONS` impressions."""
IMPRESSIONS = 300
INT8, INT16, UINT32 = pl.Int8, pl.Int16, pl.UInt32
TYPES = {"item": UINT32, "task": INT16, "value": INT8, "label_at": UINT32}


def with_tasks(settings: Settings, rng: random.Random) -> Settings:
    raw = settings.model_dump()
    tasks = [{k: v for k, v in task.items() if k != "oracle"} for task in random_tasks(rng)]
    students = [{"name": "late", "tasks": ["click"]}]
    horizon = {**raw["das"], "correction_horizon_s": rng.choice((1, 20, 200))}
    return Settings.model_validate({**raw, "tasks": tasks, "students": students, "das": horizon})


def random_labels(rng: random.Random, shown: int, longest_ms: int) -> list[Label]:
    """Of few distinct times, so that they often coincide; some known late."""
    labels = []
    for _ in range(rng.randint(1, 8)):
        ts = shown + rng.randint(0, longest_ms * 3 // 2) // 1000 * 1000
        known = ts if rng.random() < 0.5 else (ts // 10_000 + rng.randint(1, 2)) * 10_000
        labels.append(Label(known, ts, rng.randint(0, 1), rng.randint(0, 2)))
    return labels


@pytest.mark.parametrize("seed", range(CASES))
def test_outcomes_agree_with_labels_taken_one_by_one(tiny_settings: Settings, seed: int) -> None:
    rng = random.Random(seed)
    config = with_tasks(tiny_settings, rng)
    longest_ms = config.windows_ms[-1]
    pairs: list[dict[str, Any]] = []
    expected: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
    for item in range(IMPRESSIONS):
        shown = rng.randint(0, 50) * 1000
        born = shown + (rng.random() < 0.3) * rng.randint(0, longest_ms) // 1000 * 1000
        labels = random_labels(rng, shown, longest_ms)
        same = {"item": item, "shown_ms": shown, "born_ms": born, "label_at": 0}
        for x in labels:
            row = {"task": x.task, "known_ms": x.known, "ts_ms": x.ts, "value": x.value}
            pairs.append({**same, **row})
        for k in range(3):
            expected[item, k] = outcomes(config, k, shown, born, labels)
    rules = LabelRules.of(config)
    events = sequences(pl.DataFrame(pairs, schema_overrides=TYPES).select(COLUMNS), rules)
    decided = decisions(events)
    found: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
    for item, task, close_ms, label in decided.select(*GROUP, "close_ms", "label").iter_rows():
        found[item, task] = [] if close_ms is None else [(close_ms, label, False)]
    extras = extra_rows(judged(events, decided), decided).sort(*GROUP, "correction")
    for item, task, time_ms, label, correction in extras.iter_rows():
        assert correction == len(found[item, task])
        found[item, task].append((time_ms, label, True))
    with_labels = set(events.select(GROUP).unique().iter_rows())
    assert found == {k: v for k, v in expected.items() if v and k in with_labels}
