"""Memory of a join that waits with many impressions: python -m benchmarks.das.memory --rows N.

Impressions of twelve features and their predictions come in event time into the shards of a flow
whose window is a day, so all of them are pending; snapshots are taken as a flow takes them. Then
time passes and everything closes. Anonymous memory counts against a limit; pages of mapped files
are given back when a limit is near. `--limit-gb 2` sets one for the process, in a memory cgroup,
which takes root. `--held` keeps all rows in memory, with no snapshot: the ratio is then that of
anonymous memory, above what the process began with, to the Arrow size of what is pending.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.das.events import BEGIN_MS, settings
from benchmarks.formats import events
from flows.allocator import use_malloc
from flows.join import segments
from flows.join.segment_folder import wait_for_writes
from flows.join.shard import Shard
from flows.join.sources import rows_by_shard
from flows.join.watermarks import Watermarks, sources
from flows.records import ADDRESS, impression_schema, prediction_schema
from flows.settings import Settings, Task

BATCH = 8192
SHARDS = 4
DAY_S = 86_400
ROWS_A_SECOND = 1000
"""Of event time."""
ARRIVING_S = 100_000
"""Impressions a second of the join's clock."""
SNAPSHOT_EVERY_S = 10.0
"""By that clock; shortly before each, rows go to files beside the join."""
STEP_MS = 60_000
"""Event time by which the watermarks move while everything closes."""
CGROUPS = {
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}
"""Where they are in either version of Linux's, and the file of a group's limit."""
MEMBERS = "cgroup.procs"


class Join:
    """The shards of one process."""

    def __init__(self, config: Settings, folder: Path) -> None:
        self.shards = [Shard(s, config, folder, Watermarks(sources(1, 1))) for s in range(SHARDS)]
        for shard in self.shards:
            shard.clear()

    def take(self, kind: str, rows: pa.Table) -> None:
        """Rows of all shards."""
        for _, (_, shard, _, mine) in rows_by_shard(kind, rows, SHARDS):
            self.shards[shard].take_rows(kind, mine)

    def pass_time(self, ts_ms: int, now_s: float) -> int:
        """Move all watermarks; how many examples leave."""
        num = 0
        for shard in self.shards:
            for source in sources(1, 1):
                shard.take_watermark(source, ts_ms)
            num += sum(rows for _, rows in shard.advance(now_s))
        return num


def batches(config: Settings, rows: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Impressions and their predictions."""
    made_up = events(BATCH)
    for start in range(0, rows, BATCH):
        num = min(BATCH, rows - start)
        number_N = np.arange(start, start + num)
        ids = pl.Series(number_N).cast(pl.String).str.zfill(20)
        columns = {name: made_up.column(name).slice(0, num) for name in made_up.column_names}
        columns["impression_id"] = ids.to_arrow().cast(pa.string())
        columns["ts_ms"] = pa.array(BEGIN_MS + number_N * 1000 // ROWS_A_SECOND)
        place = (np.zeros(num), number_N, np.zeros(num))
        for field, column in zip(ADDRESS, place, strict=True):
            columns[field.name] = pa.array(column, field.type, safe=False)
        impressions = pa.table(columns).select(impression_schema(config).names)
        impressions = impressions.cast(impression_schema(config))
        logits = {"fm_version": np.ones(num, dtype=np.int64), "fm_logit_click": np.zeros(num, "f4")}
        both = pa.table({**columns, **{name: pa.array(x) for name, x in logits.items()}})
        schema = prediction_schema(config)
        yield impressions, both.select(schema.names).cast(schema)


def measure(rows: int, held: bool) -> dict[str, Any]:
    """Figures of a run, in bytes and seconds."""
    task = Task(name="click", window_s=DAY_S)
    base = settings(SHARDS)
    every_s = float(DAY_S) if held else SNAPSHOT_EVERY_S
    update = {"repeat_horizon_s": float(DAY_S), "recovery_every_s": every_s}
    das = base.das.model_copy(update=update)
    config = base.model_copy(update={"tasks": (task,), "das": das})
    if held:
        segments.MAX_FRESH_BYTES = 1 << 60
    use_malloc()
    list(batches(config, BATCH))  # what the libraries take for themselves
    begin, most, arrow_bytes, begin_s = resident(), dict[str, int](), 0, time.process_time()
    now_s = saved_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        join = Join(config, Path(folder))
        for number, (impressions, predictions) in enumerate(batches(config, rows), 1):
            now_s = number * BATCH / ARRIVING_S
            arrow_bytes += impressions.nbytes + predictions.nbytes
            join.take("impressions", impressions)
            join.take("predictions", predictions)
            join.pass_time(int(impressions["ts_ms"][-1].as_py()), now_s)
            if now_s - saved_s >= every_s:
                saved_s = now_s
                for shard in join.shards:
                    shard.save()
            most = larger(most, resident())
        wait_for_writes()
        waiting, waiting_s = resident(), time.process_time() - begin_s
        closed, ts_ms = 0, BEGIN_MS + DAY_S * 1000
        while closed < rows:
            ts_ms += STEP_MS
            closed += join.pass_time(ts_ms, now_s)
            most = larger(most, resident())
    return {
        "rows": rows,
        "arrow_bytes": arrow_bytes,
        "begin": begin,
        "waiting": waiting,
        "most": most,
        "anonymous_ratio": (waiting["RssAnon"] - begin["RssAnon"]) / arrow_bytes,
        "take_cpu_s": waiting_s,
        "close_cpu_s": time.process_time() - begin_s - waiting_s,
    }


def resident() -> dict[str, int]:
    """Bytes of anonymous memory and of mapped files that are in memory now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = [line.split() for line in lines if line.startswith(("RssAnon", "RssFile"))]
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in pairs}


def larger(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The larger of each."""
    return {name: max(value, one.get(name, 0)) for name, value in other.items()}


@contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """Put this process under a limit of memory, in a group of its own that goes at the end.

    Raises:
        OSError: it is not allowed to.
    """
    root, name = cgroups()
    before, group = root / own_group().lstrip("/"), root / f"exfm-{os.getpid()}"
    group.mkdir()
    try:
        (group / name).write_text(str(num_bytes))
        (group / MEMBERS).write_text(str(os.getpid()))
        try:
            yield
        finally:
            (before / MEMBERS).write_text(str(os.getpid()))
    finally:
        group.rmdir()


def cgroups() -> tuple[Path, str]:
    """Folder of the memory cgroups, version 1 or 2, and the name of the file of their limit.

    Raises:
        OSError: there are none.
    """
    for root, name in CGROUPS.items():
        if (root / MEMBERS).exists():
            return root, name
    raise OSError(f"no memory cgroup in any of {', '.join(map(str, CGROUPS))}")


def own_group() -> str:
    """Memory cgroup of this process."""
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    groups = {kind: path for _, kind, path in (line.split(":", 2) for line in lines)}
    return groups.get("memory", groups.get("", "/"))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; a limit that does not suffice ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    pa.set_cpu_count(1)
    under = nullcontext() if given.limit_gb is None else limited(int(given.limit_gb * 2**30))
    with under:
        found = measure(given.rows, given.held)
    found["limit_gb"] = given.limit_gb
    for name, value in found.items():
        print(f"{name:16} {value}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
