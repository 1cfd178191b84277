"""What the join waits with, and what it waits for: live, or as its state folder says.

A running process tells by its metrics; a shard that no process speaks for is shown as its newest
recovery snapshot has it. Sizes are those of the files there.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flows.join.damage import damage
from flows.join.recovery import SavedShard, saved_shards
from flows.join.shard_gauges import input_name
from flows.join.state import recovery_folder, shards_folder
from flows.join.watermarks import ENDED, STANDINGS, TEACHER, WAITED_FOR
from flows.records import BEGIN_MS, END_MS
from flows.report.scrape import Sample, announced, fetch, last_words, parse
from flows.run_folder import RunFolder
from flows.settings import Settings

FAR_MS = END_MS // 2
"""No event is as late: an event time beyond it means that the logs have ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A source partition as one shard knows it."""

    name: str
    """As `labels/0`; `fm/0` is the teacher's progress on `impressions/0`."""
    watermark_ms: int | None
    """None: nothing was read yet, or the log has ended."""
    standing: str
    """One of `STANDINGS`."""

    @property
    def is_teacher(self) -> bool:
        """Whether it is the teacher's progress on a partition of impressions."""
        return self.name.startswith(f"{TEACHER}/")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardView:
    """A shard."""

    shard: int
    saved_at: str | None
    """Of its recovery snapshot; None: live."""
    closed_ms: int | None
    """Buckets that end here or before are closed; None: none is, or all are."""
    pending: int
    """Impressions whose longest window is open."""
    oldest_ms: int | None
    """Event time of the oldest of them."""
    inputs: tuple[Input, ...]

    @property
    def holder(self) -> Input | None:
        """The input whose watermark holds the shard back; None if it waits for none.

        Where the teacher is as far back as an event topic, it is that which is looked at: its
        progress follows them.
        """
        waited = [i for i in self.inputs if i.standing == WAITED_FOR]
        return min(waited, key=lambda i: (i.watermark_ms or BEGIN_MS, i.is_teacher), default=None)

    @property
    def ended(self) -> bool:
        """Whether all logs have ended."""
        return all(i.standing == ENDED for i in self.inputs)

    @property
    def newest_ms(self) -> int | None:
        """Event time of the newest input of impressions and labels."""
        known = [i.watermark_ms for i in self.inputs if not i.is_teacher]
        return max((ts_ms for ts_ms in known if ts_ms is not None), default=None)

    @property
    def oldest_age_s(self) -> float | None:
        """How long ago, in event time, the oldest pending impression was shown."""
        now_ms = self.newest_ms or self.closed_ms
        if self.oldest_ms is None or now_ms is None:
            return None
        return (now_ms - self.oldest_ms) / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Files of one kind of rows, over all shards."""

    kind: str
    segments: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The whole join."""

    live: tuple[str, ...]
    """Processes that answered."""
    shards: tuple[ShardView, ...]
    """Those that have begun."""
    num_shards: int
    """Configured."""
    stores: tuple[Stored, ...]
    recovery_bytes: int
    damaged: tuple[str, ...] = ()
    """What is wrong with files that a shard would go on from, if no process speaks for it."""


def inspect(settings: Settings, folder: RunFolder, *, checksums: bool = False) -> Inspection:
    """Look at a run.

    Args:
        settings: of the run.
        folder: of the run.
        checksums: of files that a shard would go on from, compare more than the sizes.

    Raises:
        RecoveryUnreadable: the recovery store is damaged.
    """
    state, damaged = folder.state / "das", list[str]()
    sample = live_metrics(folder.processes)
    views = from_metrics(sample)
    if len(views) < settings.das.shards:
        for shard, saved in saved_shards(recovery_folder(state)).items():
            if shard not in views:
                segments = shards_folder(state) / str(shard)
                views[shard] = from_state(saved, segments)
                damaged += damage(saved, segments, checksums=checksums)
    return Inspection(
        live=tuple(sample.values),
        shards=tuple(view for _, view in sorted(views.items())),
        num_shards=settings.das.shards,
        stores=stores(shards_folder(state)),
        recovery_bytes=sum(p.stat().st_size for p in recovery_folder(state).glob("*")),
        damaged=tuple(damaged),
    )


def live_metrics(processes: Path) -> Sample:
    """Metrics of the processes of the join that answer now."""
    found = {}
    for path in sorted(processes.glob("das*.json")):
        entry = announced(path)
        if entry is not None and last_words(path, entry[0]) is None:
            text = fetch(entry[1])
            if text is not None:
                found[path.stem] = parse(text)
    return Sample(at_s=time.time(), values=found)


def from_metrics(sample: Sample) -> dict[int, ShardView]:
    """Shards by number, as running processes have them."""
    inputs: dict[int, list[Input]] = {}
    watermarks = {
        (have["shard"], have["input"]): millis(value)
        for have, value in sample.each("exfm_das_input_watermark_seconds")
    }
    for have, code in sample.each("exfm_das_input_standing_code"):
        standing, name = STANDINGS[int(code)], have["input"]
        known = None if standing == ENDED else watermarks.get((have["shard"], name))
        found = Input(name=name, watermark_ms=known, standing=standing)
        inputs.setdefault(int(have["shard"]), []).append(found)
    return {
        shard: ShardView(
            shard=shard,
            saved_at=None,
            closed_ms=millis(sample.largest("exfm_das_watermark_seconds", shard=str(shard))),
            pending=int(sample.total("exfm_das_pending_impressions", shard=str(shard))),
            oldest_ms=millis(sample.largest("exfm_das_oldest_pending_seconds", shard=str(shard))),
            inputs=in_order(found),
        )
        for shard, found in inputs.items()
    }


def from_state(saved: SavedShard, segments: Path) -> ShardView:
    """A shard as it was saved; what the wall clock left out is not kept."""
    state = saved.state
    inputs = [
        Input(
            name=input_name((kind, partition)),
            watermark_ms=real(ts_ms),
            standing=ENDED if ts_ms >= FAR_MS else WAITED_FOR,
        )
        for kind, partition, ts_ms in state["watermarks"]
    ]
    return ShardView(
        shard=state["shard"],
        saved_at=saved.saved_at,
        closed_ms=real(state["done_ms"]),
        pending=state["pending"],
        oldest_ms=oldest_in(segments, state) if state["pending"] else None,
        inputs=in_order(inputs),
    )


def in_order(inputs: list[Input]) -> tuple[Input, ...]:
    """By kind, and by partition as a number."""

    def place(found: Input) -> tuple[str, int]:
        kind, _, partition = found.name.rpartition("/")
        return kind, int(partition)

    return tuple(sorted(inputs, key=place))


def oldest_in(segments: Path, state: dict[str, Any]) -> int | None:
    """Event time of the oldest impression in saved segments that has an open window."""
    oldest, store = END_MS, state["stores"]["impressions"]
    low_ms = max(store["floor_ms"], state["open_ms"])
    for file in store["files"]:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(segments / file["name"]))).read_all()
        except (OSError, pa.ArrowInvalid):  # the flow will say so when it starts
            continue
        ts_ms = np.asarray(table.column("ts_ms").to_numpy())
        oldest = min(oldest, int(ts_ms[ts_ms >= low_ms].min(initial=END_MS)))
    return real(oldest)


def stores(shards: Path) -> tuple[Stored, ...]:
    """Files of each kind of rows."""
    segments: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for path in shards.glob("*/[!.]*.arrow"):
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # retired meanwhile
            continue
        kind = path.stem.rpartition("-")[0]
        segments[kind] += 1
        num_bytes[kind] += size
    return tuple(
        Stored(kind=kind, segments=segments[kind], num_bytes=num_bytes[kind])
        for kind in sorted(segments)
    )


def real(ts_ms: int) -> int | None:
    """An event time, unless the log has not begun or has ended."""
    return ts_ms if BEGIN_MS < ts_ms < FAR_MS else None


def millis(seconds: float | None) -> int | None:
    """Milliseconds of a gauge; None where it is not there or NaN."""
    return None if seconds is None or np.isnan(seconds) else round(seconds * 1000)
