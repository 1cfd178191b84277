"""A short soak: kills, two processes and tiny batches lead to the examples of brute force."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from benchmarks.das_soak.brute_force import expected_dead_letters, expected_examples
from benchmarks.das_soak.kills import Gauntlet
from benchmarks.das_soak.live_kills import live_kills, numbered, truths
from benchmarks.das_soak.log import random_log, soak_settings
from benchmarks.das_soak.runs import VARIANTS, same_dead_letters, same_examples, variants
from benchmarks.das_soak.watching import Watch
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import ensure_topics
from flows.run_folder import RunFolder


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_neither_kills_nor_processes_nor_batches_change_a_byte(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        settings = soak_settings(broker.bootstrap, "short")
        ensure_topics(settings)
        log = random_log(settings, 1500, seed=3)
        folder = RunFolder(tmp_path / "killed")
        toll = Gauntlet(settings, folder, log, broker, random.Random(3)).run(2, lambda _: None)
        assert toll.kills == 2
        expected = expected_examples(log)
        assert same_dead_letters(settings, expected_dead_letters(log)).passed
        checks = [
            same_examples("killed", settings, expected),
            *variants(settings, RunFolder(tmp_path), expected, VARIANTS[1:]),
        ]
        assert [check for check in checks if not check.passed] == []
        assert not same_examples("others", settings, expected.slice(1)).passed


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_killed_live_join_has_the_last_word_right(tmp_path: Path) -> None:
    checks = list(live_kills(tmp_path, 2, seed=4))
    assert len(checks) == 5
    assert [check for check in checks if not check.passed] == []


def test_last_words_tell_what_is_wrong() -> None:
    expected = {("a", 1): 1, ("b", 1): 0}
    right = {("a", 1): [(0, 0), (1, 1)], ("b", 1): [(0, 0)]}
    assert truths(expected, right).passed
    assert not truths(expected, {**right, ("a", 1): [(0, 0)]}).passed
    rows = {"impression_id": ["a", "a"], "ts_ms": [1, 1], "correction": [0, 1]}
    settings = soak_settings("nowhere:1", "none")
    for labels, passed in (([0, 1], True), ([1, 1], False)):
        columns = {f"label_{task.name}": labels for task in settings.tasks}
        masks = {f"mask_{task.name}": [True, True] for task in settings.tasks}
        assert numbered(settings, pl.DataFrame(rows | columns | masks)).passed == passed


def test_random_log_holds_every_outcome() -> None:
    log = random_log(soak_settings("nowhere:1", "none"), 3000, seed=1)
    examples = expected_examples(log)
    masks = pa.table({t.name: examples[f"mask_{t.name}"] for t in log.settings.tasks})
    assert all(0 < sum(masks[name].to_pylist()) < len(examples) for name in masks.column_names)
    assert max(examples["correction"].to_pylist()) > 0
    assert examples["fm_version"].null_count > 0
    assert len(set(examples["shard"].to_pylist())) == log.settings.das.shards
    assert {t for t, *_ in expected_dead_letters(log)} == {"impressions-none", "labels-none"}


def test_watch_names_the_files_that_are_touched(tmp_path: Path) -> None:
    with Watch(tmp_path / "a", tmp_path / "b") as watch:
        assert watch.names(0) == []
        (tmp_path / "b" / ".draft.arrow").write_bytes(b"x")
        (tmp_path / "b" / ".draft.arrow").replace(tmp_path / "b" / "done.arrow")
        assert {".draft.arrow", "done.arrow"} <= set(watch.names(5))
