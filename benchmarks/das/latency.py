"""How long an example takes to leave once it may: live, at 50,000 events a second.

An example leaves with its bucket. A bucket may be closed when every partition of every input has
been written beyond its end: the producer notes when the last of those writes was acknowledged. The
time of an example is that at which the broker appended it
(`message.timestamp.type=LogAppendTime`), by the same clock.

The same from the end of an example's own window, as event time says, is longer by its wait for the
end of the bucket, and for the tick in which the events of that moment are written.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from pathlib import Path

import numpy as np
import polars as pl
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from benchmarks.das import events
from benchmarks.das.figures import Figure, at_most
from benchmarks.das.kafka_job import started
from benchmarks.das.kafka_topics import Examples, Writer, broker, settings_for
from benchmarks.das.part import say
from flows.kafka.client import client_config
from flows.settings import Settings

EVENTS_S = 50_000
CLICKS = 0.05
TICK_MS = 100
WINDOW_S = 5.0
WARM_UP_S = 12.0
"""Longer than the window: by then examples leave as fast as impressions come."""
MEASURED_S = 20.0
MOST_S = 2.0
LIMIT_S = 120.0
Seconds_N = np.ndarray[tuple[int], np.dtype[np.float64]]


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Measure; the number of `rows` and the folder play no role."""
    with broker() as (kafka, folder):
        settings = settings_for(kafka.bootstrap, "latency", WINDOW_S, live=True)
        stamp_by_broker(settings)
        with started(settings, folder) as job:
            job.watch(lambda _: job.answers, LIMIT_S)
            say("writing")
            allowed, late_s, rate = live(Writer(settings))
            say("written")
            lags, own_lags = latencies(settings, allowed)
    note = f"{rate:,.0f} events/s written, {len(lags):,} examples; ticks up to {late_s:.2f} s late"
    return [
        at_most("Latency, from may close to emitted, mean", float(lags.mean()), "s", MOST_S, note),
        Figure(
            name="Latency, from may close to emitted, 99th percentile",
            value=float(np.quantile(lags, 0.99)),
            unit="s",
        ),
        at_most(
            "Latency, from the end of an example's own window to emitted, mean",
            float(own_lags.mean()),
            "s",
            MOST_S,
            f"buckets of {settings.das.bucket_s:g} s, events written every {TICK_MS} ms; "
            f"99th percentile {np.quantile(own_lags, 0.99):.2f} s",
        ),
    ]


def stamp_by_broker(settings: Settings) -> None:
    """Let the broker's clock stamp the examples."""
    admin = AdminClient(client_config(settings.kafka))
    entry = ConfigEntry(
        "message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET
    )
    topic = ConfigResource(
        ResourceType.TOPIC, settings.topics.examples.name, incremental_configs=[entry]
    )
    admin.incremental_alter_configs([topic])[topic].result()


def live(writer: Writer) -> tuple[list[tuple[int, float]], float, float]:
    """Write tick by tick, each when its time has come.

    Returns:
        Event time (ms) that was complete at each time (s), ascending; how late the latest tick was;
        events a second.
    """
    tick_s = TICK_MS / 1000
    num = round(EVENTS_S * tick_s / (2 + CLICKS))
    begin_ms = round(time.time() * 1000) + TICK_MS
    allowed: list[tuple[int, float]] = []
    late_s, at = 0.0, 0
    ticks = round((WARM_UP_S + MEASURED_S) / tick_s)
    total = 0
    for tick in range(ticks):
        end_ms = begin_ms + (tick + 1) * TICK_MS
        wait_s = end_ms / 1000 - time.time()
        late_s = max(late_s, -wait_s)
        time.sleep(max(0.0, wait_s))
        times_N = np.linspace(end_ms - TICK_MS, end_ms - 1, num).astype(np.int64)
        writer.impressions(events.impressions(at, times_N))
        writer.predictions(events.predictions(at, times_N), int(times_N[-1]))
        total += 2 * num + clicks(writer, at, times_N)
        at += num
        allowed.append((int(times_N[-1]), time.time()))
    return allowed, late_s, total / (time.time() - begin_ms / 1000)


def clicks(writer: Writer, at: int, times_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """Write clicks on impressions of this tick, one at least at its end in each partition."""
    step = round(1 / CLICKS)
    clicked = np.arange(step - 1, len(times_N), step)
    found = pl.DataFrame(
        {
            "impression_id": events.ids(at + clicked),
            "task": ["click"] * len(clicked),
            "value": [1] * len(clicked),
            "ts_ms": np.maximum(times_N[clicked], times_N[-1] - TICK_MS // 10),
        }
    )
    ends = found.with_columns(ts_ms=pl.lit(int(times_N[-1]))).tail(2)
    writer.labels(pl.concat([found.head(len(clicked) - 2), ends]))
    return len(clicked)


def latencies(settings: Settings, allowed: list[tuple[int, float]]) -> tuple[Seconds_N, Seconds_N]:
    """Seconds of each example behind what could close its bucket, and behind its own window.

    Raises:
        RuntimeError: not all examples came in time.
    """
    bucket_ms = settings.das.bucket_ms
    complete = [ms for ms, _ in allowed]
    last_ms = complete[-1] // bucket_ms * bucket_ms
    from_ms = complete[0] + round(WARM_UP_S * 1000)
    examples = Examples(settings)
    deadline_s = time.monotonic() + LIMIT_S
    lags: list[float] = []
    own_lags: list[float] = []
    through = dict.fromkeys(range(settings.das.shards), 0)
    while min(through.values()) < last_ms:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"shards came to {through}, not to {last_ms}")
        for at_ms, rows, header in examples.read():
            if header["through_ms"] is not None:
                through[header["shard"]] = max(through[header["shard"]], header["through_ms"])
            for closed_ms in rows["closed_ts_ms"].to_pylist():
                end_ms = (closed_ms // bucket_ms + 1) * bucket_ms
                if from_ms <= end_ms <= last_ms:
                    may_s = allowed[bisect_left(complete, end_ms)][1]
                    lags.append(at_ms / 1000 - may_s)
                    own_lags.append((at_ms - closed_ms) / 1000)
    examples.close()
    return np.array(lags), np.array(own_lags)
