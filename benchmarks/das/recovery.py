"""Recovery: how long after kill -9, and how large its store becomes.

    python -m benchmarks.das.recovery --seen 20000000

Killed in full flight, shortly before the next snapshot would come, with everything pending; a clean
stop is timed in a run of its own. The store is looked at again and again while a log of Arrow
messages goes by under a short window: were its size to depend on the number of impressions ever
seen, it would grow.
"""

from __future__ import annotations

import argparse
import signal
import sqlite3
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from benchmarks.das import events
from benchmarks.das.figures import Figure, at_most, unmeasured
from benchmarks.das.kafka_job import Job, Look, started
from benchmarks.das.kafka_topics import Examples, broker, fill, settings_for
from benchmarks.das.part import say
from flows.join.state import recovery_folder
from flows.run.supervisor import STOP_S

LIMIT_S = 240.0
EVERY_S = 5.0
"""Interval of the snapshots, the default."""
BEHIND_S = 0.8 * EVERY_S
"""From a snapshot to the kill: what was done in that time is done again."""
ROWS_OVER_PENDING = 4
"""So many that the log does not end before the kill."""
WINDOW_S = events.SPAN_MS / (1000 * ROWS_OVER_PENDING)
SHORT_S = events.SPAN_MS / 60_000
MOST_S = 10.0
TO_NEW = "Recovery, restart after kill -9 to new examples"
MOST_GROWTH = 1.5
MOST_STORE_MB = 16.0
CONTENT = "SELECT coalesce(sum(length(ser_change)), 0) FROM snaps"
SEEN_OVER_ROWS = 5
STEPS = 5
POLL_S = 0.02


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Stop and kill with `rows` impressions pending; watch the store over five times as many."""
    with broker() as (kafka, folder):
        fill(settings_for(kafka.bootstrap, "fill", WINDOW_S), ROWS_OVER_PENDING * rows)
        found = [stopped(kafka.bootstrap, folder, rows), *killed(kafka.bootstrap, folder, rows)]
    return [*found, *store(SEEN_OVER_ROWS * rows)]


def stopped(bootstrap: str, folder: Path, rows: int) -> Figure:
    """How long a clean stop takes in full flight."""
    name = "SIGTERM to the end of the process"
    settings = settings_for(bootstrap, "stopped", WINDOW_S, {"recovery_every_s": EVERY_S})
    with started(settings, folder / "stopped") as job:
        look = in_full_flight(job)
        if look.pending < rows / 2:
            return unmeasured(name, "s", few(look, rows), f"<= {STOP_S:g}")
        stopped_s = job.end(signal.SIGTERM)
    note = f"{look.pending:,.0f} impressions pending; the supervisor kills after {STOP_S:g} s"
    return at_most(name, stopped_s, "s", STOP_S, note)


def killed(bootstrap: str, folder: Path, rows: int) -> list[Figure]:
    """Seconds from the restart to examples."""
    settings = settings_for(bootstrap, "killed", WINDOW_S, {"recovery_every_s": EVERY_S})
    examples = Examples(settings)
    with started(settings, folder / "killed") as job:
        look = in_full_flight(job)
        if look.pending < rows / 2:
            return [unmeasured(TO_NEW, "s", few(look, rows), f"<= {MOST_S:g}")]
        job.end()
        behind_s = time.monotonic() - snapshot_at_s(job)
        num = examples.read_to_end()
        say(f"killed {behind_s:.1f} s behind a snapshot and behind {num:,} examples")
        return [*times(job, examples, behind_s), opening(job, look.pending)]


def few(look: Look, rows: int) -> str:
    """Why nothing was measured."""
    return f"of {rows:,} impressions {look.pending:,.0f} were pending: the log had ended"


def in_full_flight(job: Job) -> Look:
    """Wait for examples, for a snapshot behind the first of them, and for most of the next."""
    first = job.watch(lambda look: look.closed > 0, LIMIT_S)
    saved = job.watch(lambda look: look.snapshots > first.snapshots, LIMIT_S)
    return job.watch(lambda look: look.at_s > saved.at_s + BEHIND_S, LIMIT_S)


def snapshot_at_s(job: Job) -> float:
    """When the last snapshot was seen."""
    return max(b.at_s for a, b in pairwise(job.looks) if b.snapshots > a.snapshots)


def times(job: Job, examples: Examples, behind_s: float) -> list[Figure]:
    """Start again, and wait for an example that was there before, then for a new one."""
    job.start()
    again_s = new_s = 0.0
    while not new_s:
        now_s = time.monotonic() - job.started_s
        if now_s > LIMIT_S:
            raise RuntimeError(f"no new example within {LIMIT_S:.0f} s of the restart")
        found = examples.read()
        if found and not again_s:
            again_s = now_s
        if any(examples.is_new(rows, header) for _, rows, header in found):
            new_s = now_s
        time.sleep(POLL_S)
    note = (
        f"killed {behind_s:.1f} s behind a snapshot, one every {EVERY_S:g} s; "
        "start of Python included"
    )
    return [
        Figure(name="Recovery, restart after kill -9 to examples", value=again_s, unit="s"),
        at_most(TO_NEW, new_s, "s", MOST_S, note),
    ]


def opening(job: Job, pending: float) -> Figure:
    """What the restarted process says of itself."""
    job.watch(lambda look: look.closed > 0, LIMIT_S)
    return Figure(
        name="Recovery, of that opening the state",
        value=job.total("exfm_das_recovery_seconds"),
        unit="s",
        note=f"{pending:,.0f} impressions pending at the kill",
    )


def store(seen: int) -> list[Figure]:
    """Bytes of the recovery store after so many impressions, and at steps on the way."""
    with broker() as (kafka, folder):
        das = {"recovery_every_s": 0.5}
        settings = settings_for(kafka.bootstrap, "store", SHORT_S, das, form="arrow")
        num_events = fill(settings, seen).num_events
        with started(settings, folder) as job:
            sizes = series(job, settings.das.shards, num_events, seen)
    steps = ", ".join(f"{num:,}: {content:,}" for num, content, _ in sizes)
    return [
        at_most(
            "Recovery store, snapshots at the last look over those at the first",
            sizes[-1][1] / sizes[0][1],
            "x",
            MOST_GROWTH,
            f"bytes of the pickled snapshots after so many impressions, {steps}",
        ),
        at_most(
            "Recovery store, all files",
            max(total for _, _, total in sizes) / 1e6,
            "MB",
            MOST_STORE_MB,
            "SQLite keeps a log of up to 4 MB beside each of the two files",
        ),
    ]


def series(job: Job, shards: int, num_events: int, seen: int) -> list[tuple[int, int, int]]:
    """At each fifth of the events: impressions seen, bytes of the snapshots, of all files."""
    sizes: list[tuple[int, int, int]] = []
    snapshots = 0.0
    for step in range(1, STEPS):
        least = (num_events * step / STEPS, snapshots + 2 * shards)

        def reached(look: Look, least: tuple[float, float] = least) -> bool:
            return look.events >= least[0] and look.snapshots >= least[1]

        look = job.watch(reached, LIMIT_S)
        snapshots = look.snapshots
        read = round(seen * look.events / num_events)
        sizes.append((read, *size(recovery_folder(job.folder.state / "das"))))
    return sizes


def size(folder: Path) -> tuple[int, int]:
    """Bytes of the snapshots in a recovery store, and of its files."""
    content = 0
    for path in folder.glob("*.sqlite3"):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
            content += store.execute(CONTENT).fetchone()[0]
    return content, sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Measure the store over any number of impressions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seen", type=int, required=True, help="impressions")
    for figure in store(parser.parse_args().seen):
        sys.stdout.write(f"{figure.name}: {figure.value:.3g} {figure.unit} {figure.bar}\n")
        sys.stdout.write(f"  {figure.note}\n")


if __name__ == "__main__":
    main()
