"""The join core against a brute-force join of the same log, over random logs and interleavings."""

from __future__ import annotations

import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.join.example_rows import Message
from flows.join.label_join import ARRIVING
from flows.join.segment_folder import wait_for_writes
from flows.join.shard import Shard
from flows.join.watermarks import Watermarks, sources
from flows.records import (
    BEGIN_MS,
    END_MS,
    decode,
    floor_ms,
    impression_schema,
    prediction_schema,
)
from flows.settings import Settings
from tests.one_by_one import Label, outcomes, random_tasks

Row = dict[str, Any]


CASES = int(os.environ.get("EXFM_TEST_CASES", "16"))
"""Random logs for each property; thousands take `-o timeout=0`."""


@dataclass
class Case:
    """A random log: on-time records of each partition, in its order, with the watermark behind."""

    settings: Settings
    impressions: list[list[tuple[Row, int]]]
    labels: list[list[tuple[Row, int]]]
    predictions: list[list[tuple[Row, int]]] = field(default_factory=list)


def make_settings(rng: random.Random) -> Settings:
    bucket_s = rng.choice((1, 3, 10))
    topics = {
        "impressions": {"name": "i", "partitions": rng.randint(1, 3), "lateness_s": 4},
        "labels": {"name": "l", "partitions": rng.randint(1, 3), "lateness_s": 6},
    }
    return Settings.model_validate(
        {
            "domains": ["feed", "story"],
            "features": [
                {"name": "item", "kind": "categorical"},
                {"name": "price", "kind": "numeric"},
                {"name": "history", "kind": "sequence", "dtype": "int"},
            ],
            "tasks": random_tasks(rng),
            "students": [{"name": "late", "tasks": ["click"], "snapshot_every_s": 30}],
            "teacher": {"snapshot_every_s": 30},
            "topics": topics,
            "das": {
                "shards": rng.randint(1, 4),
                "bucket_s": bucket_s,
                "repeat_horizon_s": 30,
                "correction_horizon_s": rng.choice((1, 20, 200)),
            },
        }
    )


def impression(ident: int, ts_s: int, content: int) -> Row:
    return {
        "impression_id": f"i{ident}",
        "domain": ("feed", "story")[ident % 2],
        "ts_ms": ts_s * 1000,
        "item": None if content == 2 else f"a{content}",
        "price": content / 3,
        "history": list(range(content)),
        "p_click": 0.25,
    }


def label(ident: int, ts_s: int, task: int, value: int) -> Row:
    return {"impression_id": f"i{ident}", "task": task, "value": value, "ts_ms": ts_s * 1000}


def partitioned(
    rng: random.Random, records: list[Row], num: int, lateness_ms: int
) -> list[list[tuple[Row, int]]]:
    """Skewed, even empty partitions; disorder within the lateness, and a few records beyond it."""
    share = [rng.choice((0, 1, 1, 4)) for _ in range(num)]
    share[rng.randrange(num)] = 2
    parts: list[list[tuple[float, int, Row]]] = [[] for _ in range(num)]
    for i, record in enumerate(records):
        delay = rng.randint(0, lateness_ms) + (rng.random() < 0.05) * rng.randint(0, 60_000)
        parts[rng.choices(range(num), share)[0]].append((record["ts_ms"] + delay, i, record))
    out = []
    for p, part in enumerate(parts):
        newest, kept = BEGIN_MS, []
        for offset, (_, _, record) in enumerate(sorted(part, key=lambda x: x[:2])):
            if record["ts_ms"] < newest - lateness_ms:
                continue  # late
            newest = max(newest, record["ts_ms"])
            address = {"partition": p, "offset": offset, "index": 0}
            kept.append(({**record, **address}, newest - lateness_ms))
        out.append(kept)
    return out


def make_case(seed: int, *, repeats: float = 0.2) -> Case:
    rng = random.Random(seed)
    config = make_settings(rng)
    windows = [t.window_ms // 1000 for t in config.tasks]
    impressions, labels, now = [], [], 1000
    for ident in range(rng.randint(1, 60)):
        now += rng.choice((0, 1, 2, 5)) if rng.random() < 0.95 else rng.randint(50, 400)
        impressions.append(impression(ident, now, 0))
        if rng.random() < repeats:  # identical, other content, other time
            others = (now, 0), (now, 1), (now, 2), (now + 30, 1), (now + rng.randint(0, 60), 2)
            impressions.append(impression(ident, *rng.choice(others)))
        for task, window in enumerate(windows):
            while rng.random() < 0.4:  # repeats that disagree, too early, too late
                shift = rng.randint(-3, window * 3 // 2)
                labels.append(label(ident, now + shift, task, rng.randint(0, 1)))
        if rng.random() < 0.1:
            labels.append(label(10_000 + ident, now, 0, 1))
    topics = config.topics
    case = Case(
        config,
        partitioned(rng, impressions, topics.impressions.partitions, 4000),
        partitioned(rng, labels, topics.labels.partitions, 6000),
    )
    for part in case.impressions:
        rows = []
        for record, wm in part:
            row = {k: record[k] for k in prediction_schema(config).names if k in record}
            if rng.random() < 0.9:  # else the teacher missed it
                rows.append(({**row, **predicted(record, rng.random() < 0.2)}, wm))
            if rows and rng.random() < 0.1:
                again = rng.choice(rows)[0]  # a restart repeats rows; live, with another logit
                rows.append(({**again, "fm_logit_click": rng.choice((None, 7.0))}, wm))
        case.predictions.append(rows)
    return case


def predicted(record: Row, unknown: bool) -> Row:
    logit = float(record["offset"] + 100 * record["partition"])
    names = ("fm_logit_click", "fm_logit_buy", "fm_logit_like")
    logits = {name: None if unknown else logit + i for i, name in enumerate(names)}
    return {"fm_version": None if unknown else record["ts_ms"] // 5000, **logits}


def reference(case: Case, arrivals: dict[Any, int] | None = None) -> dict[int, list[Row]]:
    """What the log means, by shard, in order.

    Args:
        case: the log.
        arrivals: what each shard had closed when a record came, by (kind, place), where that is
            behind it; live only.
    """
    config, recent, out = case.settings, dict[str, int](), defaultdict[int, list[Row]](list)
    places, came = ("partition", "offset", "index"), arrivals or {}
    found = defaultdict[str, list[Label]](list)
    for x, _ in (x for part in case.labels for x in part):
        known = max(x["ts_ms"], came.get(("labels", *(x[n] for n in places)), BEGIN_MS))
        found[x["impression_id"]].append(Label(known, x["ts_ms"], x["value"], x["task"]))
    logged: dict[Any, Row] = {}
    for row, _ in (x for part in case.predictions for x in part):
        logged.setdefault(tuple(row[k] for k in places), row)

    def order(row: Row) -> Any:
        content = repr([v for k, v in normal(row).items() if k not in places])
        return row["ts_ms"], row["impression_id"], content, tuple(row[k] for k in places)

    for record in sorted((r for part in case.impressions for r, _ in part), key=order):
        ident, ts = record["impression_id"], record["ts_ms"]
        if ts - recent.get(ident, BEGIN_MS) < config.das.repeat_horizon_ms:
            continue
        recent[ident] = ts
        place = tuple(record[k] for k in places)
        born = max(ts, came.get(("impressions", *place), BEGIN_MS))
        copied = {k: v for k, v in record.items() if k not in places}
        rows: dict[Any, dict[int, int]] = defaultdict(dict)
        for k, task in enumerate(config.tasks):
            for n, (time, value, alone) in enumerate(outcomes(config, k, ts, born, found[ident])):
                of_task = config.windows_ms.index(task.window_ms)
                rank = of_task if alone else config.windows_ms.index(time - ts)
                rows[time, ident, rank, k if alone else -1, n, ts][k] = value
        fm = logged.get(place, {})
        for key, values in rows.items():
            row = {**copied, "fm_version": fm.get("fm_version"), "order": key}
            for k, task in enumerate(config.tasks):
                row[f"label_{task.name}"] = values.get(k, 0)
                row[f"mask_{task.name}"] = k in values
                logit = fm.get(f"fm_logit_{task.name}")
                row[f"fm_logit_{task.name}"] = logit if k in values else None
            out[shard(ident, config)].append({**row, "closed_ts_ms": key[0], "correction": key[4]})
    for s, examples in out.items():
        examples.sort(key=lambda r: r["order"])
        examples[:] = [normal({**r, "shard": s, "number": n}) for n, r in enumerate(examples)]
        for row in examples:
            del row["order"]
    return out


def normal(row: Row) -> Row:
    """Values as float32 columns hold them."""
    floats = [k for k in row if k == "price" or k.startswith("fm_logit")]
    return {**row, **{k: None if row[k] is None else float(np.float32(row[k])) for k in floats}}


def shard(ident: str, config: Settings) -> int:
    return shard_among(ident, config.das.shards)


@cache
def shard_among(ident: str, shards: int) -> int:
    return int(xxhash.xxh64_intdigest(ident.encode()) % shards)


class World:
    """Shards of a log, driven by random steps; a crash takes them back to their last snapshot."""

    def __init__(self, case: Case, folder: Path, rng: random.Random) -> None:
        self.case, self.folder, self.rng = case, folder, rng
        self.config = case.settings
        self.inputs = {
            **{("impressions", p): x for p, x in enumerate(case.impressions)},
            **{("labels", p): x for p, x in enumerate(case.labels)},
            **{("fm", p): x for p, x in enumerate(case.predictions)},
        }
        self.schemas = {
            "impressions": impression_schema(self.config),
            "labels": ARRIVING,
            "fm": prediction_schema(self.config),
        }
        self.log: dict[int, list[Message]] = {s: [] for s in range(self.config.das.shards)}
        self.at = dict.fromkeys(self.inputs, 0)
        self.now_s = 0.0
        self.shards = self.build(None)
        self.saved: list[Any] = [(dict(self.at), None)]  # the newest may not be committed yet

    def build(self, states: list[Any] | None) -> list[Shard]:
        """Shards as they were saved, or fresh."""
        names = sources(len(self.case.impressions), len(self.case.labels))
        shards = []
        for s in range(self.config.das.shards):
            core = Shard(s, self.config, self.folder, Watermarks(names))
            if states is None:
                core.clear()
            else:
                core.restore(states[s])
            shards.append(core)
        return shards

    def run(self, crashes: int) -> None:
        """Read every input to its end."""
        while any(self.at[x] <= len(self.inputs[x]) for x in self.inputs):
            self.read(self.rng.choice(list(self.inputs)))
            if self.rng.random() < 0.1:
                self.saved.append((dict(self.at), [core.save() for core in self.shards]))
            if crashes and self.rng.random() < 0.1:
                crashes -= 1
                self.saved = [self.rng.choice(self.saved[-2:])]
                at, states = self.saved[0]
                self.at, self.shards = dict(at), self.build(states)

    def read(self, source: tuple[str, int]) -> None:
        """Give the next rows of a source to all shards, and its watermark."""
        rows, start = self.inputs[source], self.at[source]
        end = min(start + self.rng.randint(1, 20), len(rows))
        watermark = END_MS if start >= len(rows) else rows[end - 1][1]
        self.at[source] = end + (start >= len(rows))
        for s, core in enumerate(self.shards):
            mine = [r for r, _ in rows[start:end] if shard(r["impression_id"], self.config) == s]
            table = pa.Table.from_pylist(mine, self.schemas[source[0]])
            core.take_rows("predictions" if source[0] == "fm" else source[0], table)
            core.take_watermark(source, watermark)
            if watermark == END_MS or self.rng.random() < 0.7:
                self.now_s += self.rng.choice([0, 0.3]) * self.config.das.recovery_every_s
                self.log[s] += core.advance(self.now_s)


def accepted(log: list[Message], s: int) -> Iterator[Row]:
    """Rows as a consumer takes them: the next number only; repeats must be identical."""
    rows: list[Row] = []
    through = BEGIN_MS
    for message, num in log:
        table, header = decode(message)
        assert header["shard"] == s
        assert table.num_rows == num
        assert header["first"] <= len(rows), "a gap"
        for number, row in enumerate(table.to_pylist(), header["first"]):
            assert row["number"] == number
            if number == len(rows):
                assert row["closed_ts_ms"] >= through, "behind a mark"
                rows.append(row)
            assert rows[number] == row, "a repeat with other content"
        if header["total"] == len(rows) and header["through_ms"] is not None:
            through = max(through, header["through_ms"])
            assert all(r["closed_ts_ms"] < header["through_ms"] for r in rows)
    yield from rows


def check(seed: int) -> None:
    """One random log, read in a random way, against brute force."""
    case, rng = make_case(seed), random.Random(seed + 1)
    expected = reference(case)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.join.shard.MAX_CLOSE_ROWS", rng.choice((1, 30, 65_536)))
        world = World(case, Path(folder), rng)
        world.run(crashes=rng.choice((0, 1, 5)))
        wait_for_writes()
        for s, core in enumerate(world.shards):
            assert list(accepted(world.log[s], s)) == expected[s]
            assert core.done_ms == floor_ms(END_MS, case.settings.das.bucket_ms)


class LiveWorld(World):
    """Some rows come behind their input's watermark; shards are saved and restored in place."""

    def __init__(self, case: Case, folder: Path, rng: random.Random) -> None:
        super().__init__(case, folder, rng)
        self.held: list[tuple[str, Row]] = []
        self.arrivals: dict[Any, int] = {}
        self.at = {s: len(x) if s[0] == "fm" else 0 for s, x in self.inputs.items()}
        for (kind, p), rows in self.inputs.items():
            if kind == "fm":
                self.give("fm", [r for r, _ in rows])
            else:
                few = 0.0 if rng.random() < 0.2 else 0.35
                self.held += [(kind, r) for r, _ in rows if rng.random() < few]
                self.inputs[kind, p] = [x for x in rows if (kind, x[0]) not in self.held]
        rng.shuffle(self.held)

    def run(self, crashes: int) -> None:
        """Read every input to its end, and give what was held back at any time until then."""
        while any(self.at[x] <= len(self.inputs[x]) for x in self.inputs):
            self.read(self.rng.choice(list(self.inputs)))
            while self.held and self.rng.random() < 0.5:
                kind, row = self.held.pop()
                self.give(kind, [row])
            if crashes and self.rng.random() < 0.05:
                crashes -= 1
                self.shards = self.build([core.save() for core in self.shards])
        for kind, row in self.held:
            self.give(kind, [row])

    def give(self, kind: str, rows: list[Row]) -> None:
        """Rows to their shards; what those had closed is noted."""
        for s, core in enumerate(self.shards):
            mine = [r for r in rows if shard(r["impression_id"], self.config) == s]
            for r in mine:
                place = (kind, r["partition"], r["offset"], r["index"])
                self.arrivals[place] = core.done_ms
            table = pa.Table.from_pylist(mine, self.schemas[kind])
            core.take_rows("predictions" if kind == "fm" else kind, table)


def check_stragglers(seed: int) -> None:
    """One random log of which some rows come too late, live, against brute force."""
    case, rng = make_case(seed, repeats=0), random.Random(seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        world = LiveWorld(case, Path(folder), rng)
        world.run(crashes=rng.choice((0, 3)))
        wait_for_writes()
        expected = reference(case, world.arrivals)
        for s in range(len(world.shards)):
            assert list(accepted(world.log[s], s)) == expected[s]


@hypothesis_settings(max_examples=CASES, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_shards_agree_with_brute_force(seed: int) -> None:
    check(seed)


@hypothesis_settings(max_examples=2 * CASES, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_stragglers_agree_with_brute_force(seed: int) -> None:
    check_stragglers(seed)
