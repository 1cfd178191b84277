"""Through Kafka: events a second of one process and of two, what recovery costs, and Flink.

The topics hold three times as many impressions as shall be pending, and the window is a third of
the time that they span; of the longer log, as much less. The rate is taken from the first example
(everything before it is pending) to the moment when the last event has been read; the join's own
metrics say how many events that were. A rate of the whole log is taken from the first event read to
the end of the process.

All runs take turns, three rounds; of each the fastest by the wall clock counts, in all its figures.

What recovery costs shows only where several snapshots fall into the time measured. So the rate of
one process and that cost are told by runs over a longer log of the same number of pending
impressions, and on the shorter one by runs with a snapshot every two seconds, five times as many.

The broker runs on the same machine. Where there are few cores, two processes and the broker do not
fit beside each other; so the speed-up is also told in CPU time, as the time of one process over
that of the busier of two: what they gain where each has a core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.das import events
from benchmarks.das.engine import EngineFailed
from benchmarks.das.figures import Figure, at_least, at_most, unmeasured
from benchmarks.das.kafka_job import EVERY_S as EVERY_LOOK_S
from benchmarks.das.kafka_job import Job, Look, started
from benchmarks.das.kafka_topics import (
    JSON_PREDICTIONS,
    Filled,
    broker,
    drop_examples,
    fill,
    settings_for,
)
from benchmarks.das.part import say
from benchmarks.das.peers import flink_kafka
from flows.settings import Settings

LIMIT_S = 600.0
"""Of one run, on a machine three times slower than the one of docs/das.md."""
ROWS_OVER_PENDING = 3
WINDOW_S = events.SPAN_MS / (1000 * ROWS_OVER_PENDING)
ROUNDS = 3
EVERY_S = 10.0
"""Interval of the snapshots."""
OFTEN_S = 2.0
"""The same in the run that shows what more of them cost."""
LONG_OVER_PENDING = 13
"""Rows of the longer log over those that are pending."""
LEAST_SNAPSHOTS = 3
"""Of a shard within the time measured: with fewer, the cost of recovery is not measured."""
LEAST_EVENTS_S = 100_000.0
MOST_LOST = 10.0
LEAST_SPEED_UP = 1.6
LEAST_OVER_FLINK = 3.0
FLINK_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A way to run the join."""

    name: str
    processes: int = 1
    every_s: float = EVERY_S
    """Interval of the snapshots."""
    recovery: bool = True


SAVED = Kind(name="with-recovery")
OFTEN = Kind(name="often", every_s=OFTEN_S)
UNSAVED = Kind(name="without-recovery", recovery=False)
TWO = Kind(name="two", processes=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """One run of the join."""

    events_s: float
    """Events read a second of wall time, while the windows were full."""
    events_cpu_s: float
    """The same a second of CPU time of all processes."""
    busiest_cpu_s: float
    """CPU time of the busiest process, from its own first event to its end."""
    pending: float
    """Least while it was measured."""
    snapshots: float
    """Of a shard within the time measured."""
    snapshots_s: float
    """Time in recovery snapshots, of the time measured."""
    num_events: float
    """Measured."""
    whole_events_s: float
    """All events a second of wall time, from the first one read to the end of the process."""
    started_events_s: float
    """The same from the start of the process."""


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Measure with `rows` impressions pending; the folder plays no role."""
    with broker() as (kafka, folder):
        settings = settings_for(kafka.bootstrap, "fill", WINDOW_S)
        filled = fill(settings, ROWS_OVER_PENDING * rows, for_flink=True)
        kinds = (SAVED, OFTEN, UNSAVED, TWO)
        saved, often, unsaved, two = fastest(settings, folder, kinds, filled)
        beside = [lost(often, unsaved, OFTEN_S), *flink(settings, filled, saved)]
    with broker() as (kafka, folder):
        settings = settings_for(kafka.bootstrap, "fill", events.SPAN_MS / 1000 / LONG_OVER_PENDING)
        filled = fill(settings, LONG_OVER_PENDING * rows)
        long, long_unsaved = fastest(settings, folder, (SAVED, UNSAVED), filled)
    return [pace(long), *figures(saved, unsaved, two), lost(long, long_unsaved, EVERY_S), *beside]


def fastest(settings: Settings, folder: Path, kinds: Sequence[Kind], filled: Filled) -> list[Rate]:
    """The fastest run of each kind; they take turns."""
    found = [
        [measured(settings, folder, kind, turn, filled) for kind in kinds]
        for turn in range(1, ROUNDS + 1)
    ]
    return [max(rounds, key=rate_of) for rounds in zip(*found, strict=True)]


def flink(settings: Settings, filled: Filled, ours: Rate) -> list[Figure]:
    """Flink SQL over the same topics, the predictions as JSON, and how many times faster we are."""
    say("Flink SQL over the same broker")
    topics = {name: name for name in ("impressions", "labels", JSON_PREDICTIONS)}
    name = "Kafka, whole log, over Flink SQL"
    try:
        outcome = flink_kafka(
            settings.kafka.bootstrap, topics, window_s=WINDOW_S, limit_s=FLINK_LIMIT_S
        )
        if outcome.examples != filled.impressions:
            raise EngineFailed(f"{outcome.examples:,} examples of {filled.impressions:,}")
    except EngineFailed as failure:
        return [unmeasured(name, "x", str(failure), f">= {LEAST_OVER_FLINK:g}")]
    theirs = filled.num_events / outcome.seconds
    return [
        at_least(
            name,
            ours.whole_events_s / theirs,
            "x",
            LEAST_OVER_FLINK,
            f"{ours.whole_events_s:,.0f} to {theirs:,.0f} events/s, {outcome.examples:,} examples "
            f"of either, {outcome.predicted:,} of Flink's with a prediction; ours with recovery, "
            "to a topic; Flink without checkpoints, state on the heap, to files; our clock leaves "
            "out the start, Flink's the virtual machine's, not the plan and the start of a cluster",
        ),
        Figure(
            name="Kafka, whole log, over Flink SQL, our start counted",
            value=ours.started_events_s / theirs,
            unit="x",
            note=f"{ours.started_events_s:,.0f} events/s from the start of our process",
        ),
        Figure(
            name="Kafka, over Flink SQL, CPU",
            value=outcome.cpu_s / ours.busiest_cpu_s,
            unit="x",
            note=f"{ours.busiest_cpu_s:.1f} to {outcome.cpu_s:.1f} CPU s",
        ),
        Figure(
            name="Kafka, Flink SQL",
            value=theirs,
            unit="events/s",
            drawn_as="through Kafka: Flink SQL",
        ),
    ]


def measured(filling: Settings, folder: Path, kind: Kind, turn: int, filled: Filled) -> Rate:
    """One run over what was filled in; its examples are deleted."""
    name = f"{kind.name}-{turn}"
    say(f"the join: {kind.name}, round {turn} of {ROUNDS}")
    settings = settings_for(
        filling.kafka.bootstrap,
        name,
        filling.tasks[0].window_s,
        {"recovery_every_s": kind.every_s},
        partitions=filling.topics.impressions.partitions,
    )
    place = folder / name
    with started(settings, place, processes=kind.processes, recovery=kind.recovery) as job:
        job.watch(lambda _: False, LIMIT_S)
        found = rate(job, filled, settings.das.shards)
    drop_examples(settings)
    say(f"{kind.name}: {found.events_s:,.0f} events/s, {found.events_cpu_s:,.0f} a CPU second")
    return found


def rate_of(found: Rate) -> float:
    """By which the fastest of several runs is chosen."""
    return found.events_s


def rate(job: Job, filled: Filled, shards: int) -> Rate:
    """Events a second while the windows were full.

    Raises:
        RuntimeError: it read other events than those that were written, found other examples, or
            was done too soon.
    """
    num_events, closed = filled.num_events, job.looks[-1].closed
    if closed != filled.impressions:
        raise RuntimeError(f"{closed:,.0f} examples of {filled.impressions:,} impressions")
    full = [look for look in job.looks if look.closed > 0]
    read = [look for look in full if look.events >= num_events]
    if not read or read[0].events != num_events:
        raise RuntimeError(
            f"of {num_events:,} events, {full[-1].events if full else 0:,.0f} were read"
        )
    if len(full) == len(read):
        raise RuntimeError(f"all was read within {EVERY_LOOK_S:g} s: take more --rows")
    first, last = full[0], read[0]
    idle = next(a for a, b in pairwise(job.looks) if b.events > 0)
    within = [look for look in full if look.at_s <= last.at_s]
    return Rate(
        events_s=(last.events - first.events) / (last.at_s - first.at_s),
        events_cpu_s=(last.events - first.events) / (sum(last.cpu_s) - sum(first.cpu_s)),
        busiest_cpu_s=max(working_cpu_s(job.looks, of) for of in range(len(last.cpu_s))),
        pending=min(look.pending for look in within),
        snapshots=(last.snapshots - first.snapshots) / shards,
        snapshots_s=last.snapshot_s - first.snapshot_s,
        num_events=last.events - first.events,
        whole_events_s=num_events / (job.ended_s - idle.at_s),
        started_events_s=num_events / (job.ended_s - job.started_s),
    )


def working_cpu_s(looks: Sequence[Look], of: int) -> float:
    """CPU time of a process from its first event to its end."""
    idle = [look.cpu_s[of] for look in looks if look.events_of[of] == 0]
    return looks[-1].cpu_s[of] - max(idle, default=0.0)


def pace(long: Rate) -> Figure:
    """Events a second over the longer log, with snapshots among them."""
    return at_least(
        "Kafka, one process, recovery on",
        long.events_s,
        "events/s",
        LEAST_EVENTS_S,
        f"{long.pending:,.0f} impressions or more pending, a snapshot every {EVERY_S:g} s, "
        f"{long.snapshots:.0f} a shard while {long.num_events:,.0f} events were measured",
    )


def figures(saved: Rate, unsaved: Rate, two: Rate) -> list[Figure]:
    """What was measured over the shorter log, beside the bars."""
    rates = {
        "recovery on": saved,
        "recovery off": unsaved,
        "two processes, recovery on": two,
    }
    busy = saved.busiest_cpu_s / two.busiest_cpu_s
    return [
        *(
            Figure(name=f"Kafka, {name}, CPU", value=found.events_cpu_s, unit="events/CPU s")
            for name, found in rates.items()
        ),
        Figure(
            name="Kafka, one process, whole log",
            value=saved.whole_events_s,
            unit="events/s",
            drawn_as="through Kafka: exfm, recovery on",
        ),
        at_least(
            "Kafka, two processes over one, a core each",
            busy,
            "x",
            LEAST_SPEED_UP,
            "CPU time of the one process over that of the busier of the two",
        ),
        Figure(
            name="Kafka, two processes over one, wall clock",
            value=two.events_s / saved.events_s,
            unit="x",
            note=f"{os.cpu_count()} cores shared with the broker; {two.events_s:,.0f} events/s",
        ),
    ]


def lost(saved: Rate, unsaved: Rate, every_s: float) -> Figure:
    """What recovery costs of the rate, by the wall clock."""
    name = f"Kafka, lost to recovery, a snapshot every {every_s:g} s"
    many = f"{saved.snapshots:.1f} snapshots a shard while it was measured"
    if saved.snapshots < LEAST_SNAPSHOTS:
        why = f"{many}, fewer than {LEAST_SNAPSHOTS}: take more --rows"
        return unmeasured(name, "%", why, f"<= {MOST_LOST:g}")
    by_cpu = 100 * (1 - saved.events_cpu_s / unsaved.events_cpu_s)
    note = (
        f"{saved.events_s:,.0f} of {unsaved.events_s:,.0f} events/s; {many}, "
        f"{saved.snapshots_s:.1f} s in them; in CPU time: {by_cpu:.1f} %"
    )
    return at_most(name, 100 * (1 - saved.events_s / unsaved.events_s), "%", MOST_LOST, note)
