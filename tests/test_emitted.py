"""Live shards that crash: what they wrote stays, is not written again, and nothing else is lost.

What contradicts it is a correction, where a task corrects.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.join.emitted import Written
from flows.join.example_rows import Message
from flows.join.label_join import ARRIVING
from flows.join.label_rules import LabelRules
from flows.join.segment_folder import wait_for_writes
from flows.join.shard import Shard
from flows.join.watermarks import PatientWatermarks, sources
from flows.join.written_examples import Found
from flows.learning.example_reader import ExampleReader, Mask, Place
from flows.records import END_MS, decode, example_schema, impression_schema
from flows.settings import Settings
from monitoring.metrics import DAS_TOO_LATE
from tests.test_shard import CASES, Case, Row, World, make_case, shard

Key = tuple[str, str, int]
"""Id, task, correction."""


def written(settings: Settings, log: list[Message], total: int) -> Written:
    """What a log holds from a number on, found from its end."""
    decoded = [decode(message) for message, _ in log]
    starts = [i for i, (_, header) in enumerate(decoded) if header["first"] <= total]
    found = Found(settings, total)
    for table, header in decoded[max(starts, default=0) :]:
        found.add(table, header)
    return found.written()


def keys(rows: list[Row], settings: Settings) -> dict[Key, list[int]]:
    """Event times of the impressions of each example of a task."""
    found = defaultdict[Key, list[int]](list)
    for row in rows:
        for task in settings.tasks:
            if row[f"mask_{task.name}"]:
                found[row["impression_id"], task.name, row["correction"]].append(row["ts_ms"])
    return found


def said(rows: list[Row], settings: Settings) -> dict[tuple[str, int, int], list[tuple[int, int]]]:
    """Correction and label of each example of an impression (id, event time) and task, in order."""
    found = defaultdict[tuple[str, int, int], list[tuple[int, int]]](list)
    for row in rows:
        for task, name in enumerate(t.name for t in settings.tasks):
            if row[f"mask_{name}"]:
                key = row["impression_id"], row["ts_ms"], task
                found[key].append((row["correction"], row[f"label_{name}"]))
    return found


def assert_last_word_is_right(ours: list[Row], theirs: list[Row], settings: Settings) -> None:
    """Examples are numbered 0, 1, ..., each contradicts the one before, the last is the twin's."""
    found, twin = said(ours, settings), said(theirs, settings)
    shown = Counter(ident for ident, _ in {key[:2] for key in (*found, *twin)})
    corrects_T = LabelRules.of(settings).corrects_T
    for key, examples in found.items():
        numbers, labels = zip(*examples, strict=True)
        assert numbers == tuple(range(len(numbers))), key
        assert all(a != b for a, b in pairwise(labels)), key
        assert corrects_T[key[2]] or len(labels) == 1
        if corrects_T[key[2]] and key in twin and shown[key[0]] == 1:
            assert labels[-1] == twin[key][-1][1], key


def everything(table: pa.Table) -> Mask:
    return np.ones(table.num_rows, dtype=np.bool_)


class Consumer:
    """Reads the logs of all shards as a trainer does."""

    def __init__(self, settings: Settings) -> None:
        num = settings.das.shards
        schema, bucket_ms = example_schema(settings), settings.das.bucket_ms
        place = Place.start(num, num)
        self.reader = ExampleReader(place, bucket_ms, schema, keep=everything)
        self._read = [0] * num
        self.rows: list[Row] = []

    def read(self, log: dict[int, list[Message]]) -> None:
        """Take what is new."""
        for s, messages in log.items():
            for at in range(self._read[s], len(messages)):
                self.reader.put(s, at, *decode(messages[at][0]))  # type: ignore[arg-type]
            self._read[s] = len(messages)
            if ready := self.reader.take():
                self.rows += ready.table.to_pylist()


class Lives(World):
    """Live shards; beside each, a twin that does not know what its earlier lives wrote."""

    def __init__(self, case: Case, folder: Path, rng: random.Random) -> None:
        self.now_s = 0.0
        self.forgetful: list[Shard] = []
        super().__init__(case, folder, rng)
        self.lineage: dict[int, list[Message]] = {s: [] for s in self.log}
        self.snapshots: list[Any] = [(dict(self.at), None, None, dict.fromkeys(self.log, 0))]
        self.flushed = dict.fromkeys(self.log, 0)
        self.consumer = Consumer(self.config)

    def build(self, states: list[Any] | None) -> list[Shard]:
        """Shards that look back."""
        shards = self.restored(states, self.folder / "lives")
        for s, core in enumerate(shards):
            core.recall(written(self.config, self.log[s], core.total))
        return shards

    def restored(self, states: list[Any] | None, folder: Path) -> list[Shard]:
        """Shards as they were saved, or fresh, that do not look back."""
        names = sources(len(self.case.impressions), len(self.case.labels))
        shards = []
        for s in range(self.config.das.shards):
            core = Shard(s, self.config, folder, PatientWatermarks(names, 5.0))
            if states is None:
                core.clear()
            else:
                core.restore(states[s])
            shards.append(core)
        return shards

    def run(self, crashes: int) -> None:
        """Read every input to its end."""
        self.forgetful = self.restored(None, self.folder / "forgetful")
        while any(self.at[x] <= len(self.inputs[x]) for x in self.inputs):
            self.read(self.rng.choice(list(self.inputs)))
            if self.rng.random() < 0.05:
                self.snapshot()
            if crashes and self.rng.random() < 0.2 and self.waits():
                crashes -= 1
                self.crash()
        self.consumer.read(self.log)

    def waits(self) -> bool:
        """Whether something is written behind the snapshot, and the end of the log is unknown."""
        return any(len(self.log[s]) > num for s, num in self.flushed.items()) and any(
            self.at[x] <= len(self.inputs[x]) for x in self.inputs if x[0] != "fm"
        )

    def snapshot(self) -> None:
        """Save the state; all messages so far are written."""
        states = [[core.save() for core in cores] for cores in (self.shards, self.forgetful)]
        lengths = {s: len(messages) for s, messages in self.lineage.items()}
        self.snapshots.append((dict(self.at), *states, lengths))
        self.flushed = {s: len(messages) for s, messages in self.log.items()}

    def crash(self) -> None:
        """Go back to one of the last snapshots; the newest messages may not have been written."""
        for s, messages in self.log.items():
            del messages[self.rng.randint(self.flushed[s], len(messages)) :]
            self.flushed[s] = len(messages)
        self.consumer.read(self.log)
        self.snapshots = [self.rng.choice(self.snapshots[-2:])]
        at, states, others, lengths = self.snapshots[0]
        self.at, self.shards = dict(at), self.build(states)
        self.forgetful = self.restored(others, self.folder / "forgetful")
        for s, length in lengths.items():
            del self.lineage[s][length:]

    def read(self, source: tuple[str, int]) -> None:
        """Give the next rows of a source to all shards; the wall clock may let go of any."""
        rows, start = self.inputs[source], self.at[source]
        end = min(start + self.rng.randint(1, 20), len(rows))
        watermark = END_MS if start >= len(rows) else rows[end - 1][1]
        self.at[source] = end + (start >= len(rows))
        self.now_s += self.rng.choice((0, 1, 3))
        other = self.rng.choice(list(self.inputs)) if self.rng.random() < 0.3 else None
        standing = self.rng.choice(("idle", "idle", "at_end", "behind"))
        for s in range(len(self.shards)):
            mine = [r for r, _ in rows[start:end] if shard(r["impression_id"], self.config) == s]
            table = pa.Table.from_pylist(mine, self.schemas[source[0]])
            closes = watermark == END_MS or self.rng.random() < 0.7
            for core, log in ((self.shards[s], self.log), (self.forgetful[s], self.lineage)):
                core.take_rows("predictions" if source[0] == "fm" else source[0], table)
                core.take_watermark(source, watermark)
                if other is not None and other[0] != "fm":
                    core.take_standing(standing, other)
                if closes:
                    log[s] += core.advance(self.now_s)


def check(seed: int) -> None:
    """One random log, read by lives that crash."""
    case, rng = make_case(seed), random.Random(seed + 1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.join.shard.MAX_CLOSE_ROWS", rng.choice((1, 30, 65_536)))
        world = Lives(case, Path(folder), rng)
        world.run(crashes=rng.choice((1, 2, 5)))
        wait_for_writes()
    reader = world.consumer.reader
    assert (reader.repeats, reader.passed_over, reader.pending_rows) == (0, 0, 0)
    assert reader.through_ms == END_MS
    numbers = defaultdict[int, list[int]](list)
    for row in world.consumer.rows:
        numbers[row["shard"]].append(row["number"])
    for of_shard in numbers.values():
        assert of_shard == list(range(len(of_shard)))
    horizon_ms = case.settings.das.repeat_horizon_ms
    found = keys(world.consumer.rows, case.settings)
    for key, shown in found.items():
        near = [b - a for a, b in zip(sorted(shown), sorted(shown)[1:], strict=False)]
        assert all(gap_ms >= horizon_ms for gap_ms in near), f"{key} twice: {shown}"
    theirs = [r for log in world.lineage.values() for m, _ in log for r in decode(m)[0].to_pylist()]
    assert_last_word_is_right(world.consumer.rows, theirs, case.settings)
    for key, shown in keys(theirs, case.settings).items():
        for ts_ms in shown if key[2] == 0 else ():
            assert any(abs(ts_ms - t) < horizon_ms for t in found[key]), f"{key} lost: {ts_ms}"


@hypothesis_settings(max_examples=CASES // 2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_example_is_emitted_again_by_a_later_life(seed: int) -> None:
    check(seed)


NAMES = sources(1, 2)


def corrected(late_labels: str) -> Settings:
    """One task with a window of ten seconds, labels in two partitions."""
    return Settings.model_validate(
        {
            "domains": ["feed"],
            "features": [{"name": "item", "kind": "categorical"}],
            "tasks": [{"name": "click", "window_s": 10, "late_labels": late_labels}],
            "students": [{"name": "late", "tasks": ["click"]}],
            "topics": {
                "impressions": {"name": "i", "partitions": 1},
                "labels": {"name": "l", "partitions": 2},
            },
            "das": {"shards": 1, "correction_horizon_s": 100},
        }
    )


def pass_time(core: Shard, ts_s: int, but: tuple[str, int] | None = None) -> list[Message]:
    """Messages that leave when all inputs, but perhaps one, have come to `ts_s`."""
    for source in NAMES:
        if source != but:
            core.take_watermark(source, ts_s * 1000)
    return core.advance(float(ts_s))


def two_lives(
    settings: Settings, folder: Path, seen: list[Row], unseen: list[Row]
) -> list[tuple[int, int]]:
    """Correction and label of the examples of an impression at 100 s, killed behind its window.

    Args:
        settings: of `corrected`.
        folder: of the shard.
        seen: labels that come behind the window in the first life, from an idle partition.
        unseen: further ones; in the second life all come before anything closes.
    """
    place = {"partition": 1, "index": 0}
    first, second = (
        pa.Table.from_pylist([r | place | {"offset": n} for n, r in enumerate(rows)], ARRIVING)
        for rows in (seen, seen + unseen)
    )
    core = Shard(0, settings, folder, PatientWatermarks(NAMES, 5.0))
    core.clear()
    shown = {"impression_id": "i", "domain": "feed", "ts_ms": 100_000, "item": "a"}
    event = shown | {"partition": 0, "offset": 0, "index": 0}
    core.take_rows("impressions", pa.Table.from_pylist([event], impression_schema(settings)))
    log = pass_time(core, 100)
    state = core.save()
    core.take_standing("idle", ("labels", 1))
    log += pass_time(core, 130, but=("labels", 1))
    core.take_rows("labels", first)
    log += pass_time(core, 131)
    core = Shard(0, settings, folder, PatientWatermarks(NAMES, 5.0))
    core.restore(state)
    core.recall(written(settings, log, core.total))
    core.take_rows("labels", second)
    log += pass_time(core, 400)
    rows = [row for message, _ in log for row in decode(message)[0].to_pylist()]
    return [(row["correction"], row["label_click"]) for row in rows]


def label(ts_s: int, value: int) -> Row:
    return {"impression_id": "i", "task": 0, "value": value, "ts_ms": ts_s * 1000}


def test_label_that_is_in_time_for_a_later_life_only_corrects(tmp_path: Path) -> None:
    found = two_lives(corrected("correct"), tmp_path, [], [label(105, 1)])
    assert found == [(0, 0), (1, 1)]


def test_corrections_of_a_later_life_go_on_behind_those_written(tmp_path: Path) -> None:
    found = two_lives(corrected("correct"), tmp_path, [label(105, 1)], [label(150, 0)])
    assert found == [(0, 0), (1, 1), (2, 0)]


def test_label_that_a_later_life_drops_is_counted(tmp_path: Path) -> None:
    before = DAS_TOO_LATE.labels("labels")._value.get()
    assert two_lives(corrected("drop"), tmp_path, [], [label(105, 1)]) == [(0, 0)]
    assert DAS_TOO_LATE.labels("labels")._value.get() == before + 1
