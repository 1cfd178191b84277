"""How fast events of each format are written and read: python -m benchmarks.formats [--rows N].

An event has twelve features, one of them a list of ten ids: some 450 bytes of JSON. Rows a CPU
second of one thread, the best of several rounds in turn; reading is all of `EventDecoder`, checks
and addresses included, on batches as a flow reads them. The registry is the client's own mock: a
flow, too, asks a real one for each schema only once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from confluent_kafka import Message
from rich.console import Console
from rich.table import Table

from benchmarks.das.job import INTS, NUMBERS, TEXTS
from flows.events.decoding import EventDecoder
from flows.events.encoding import FramedEvents, arrow_events, json_events
from flows.events.rules import impression_rules
from flows.events.schema_registry import connect
from flows.registry_settings import SchemaRegistry
from flows.settings import Format, Settings

BATCH = 16_384
"""Events read at a time: `das.max_batch`."""
ARROW_ROWS = 512
"""Events of an Arrow message."""
ROUNDS = 7
REGISTRY = SchemaRegistry(url="mock://formats")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10 * BATCH)
    rows = arguments.parse_args(argv).rows
    pa.set_cpu_count(1)
    found = measure(rows)
    shown = Table(title=f"{rows:,} events, one thread")
    for head in (
        "format",
        "bytes an event",
        "written/s",
        "read/s",
        "one message in 100 bad, read/s",
    ):
        shown.add_column(head, justify="left" if head == "format" else "right")
    for form, (size, *rates) in found.items():
        shown.add_row(form, f"{size:.0f}", *(f"{rate:,.0f}" for rate in rates))
    Console().print(shown)


def measure(rows: int) -> dict[str, list[float]]:
    """Bytes an event and rates by format."""
    settings = settings_of()
    rules = impression_rules(settings)
    table = events(rows).cast(rules.schema)
    writers = {form: writer(form, rules.schema) for form in get_args(Format)}
    values = {form: write(table) for form, write in writers.items()}
    best = {form: [0.0, 0.0, 0.0] for form in writers}
    for _ in range(ROUNDS):
        for form, write in writers.items():
            decoder = EventDecoder(rules.schema, form, rules.faults, REGISTRY)
            good = batches(values[form], form)
            bad = batches(damaged(values[form]), form)
            works: list[Callable[[], Any]] = [
                partial(write, table),
                partial(read, decoder, good),
                partial(read, decoder, bad),
            ]
            for place, work in enumerate(works):
                best[form][place] = max(best[form][place], rows / cpu_s(work))
    sizes = {form: sum(map(len, found)) / rows for form, found in values.items()}
    return {form: [sizes[form], *rates] for form, rates in best.items()}


def read(decoder: EventDecoder, found: Sequence[Sequence[Message]]) -> None:
    """Decode all batches."""
    for batch in found:
        decoder.decode(batch)


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of some work."""
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def settings_of() -> Settings:
    """Twelve features."""
    features: list[dict[str, Any]] = [
        *({"name": name, "kind": "categorical", "dtype": "int"} for name in INTS),
        *({"name": name, "kind": "categorical"} for name in TEXTS),
        *({"name": name, "kind": "numeric"} for name in NUMBERS),
        {"name": "recent_ads", "kind": "sequence", "dtype": "int"},
    ]
    return Settings.model_validate(
        {
            "domains": ["feed", "search"],
            "features": features,
            "tasks": [{"name": "click", "window_s": 60, "oracle": "p_click"}],
            "students": [{"name": "one", "tasks": ["click"]}],
        }
    )


def events(rows: int) -> pa.Table:
    """Made-up impressions."""
    rng = np.random.default_rng(0)
    domains = np.array(["feed", "search"], dtype=object)
    ids = rng.integers(0, 10**7, rows * 10)
    offsets = pa.array(np.arange(0, rows * 10 + 1, 10, dtype=np.int32))
    columns: dict[str, pa.Array] = {
        "impression_id": pa.array([f"18b{i:012x}-{i % 97}" for i in range(rows)]),
        "domain": pa.array(domains[rng.integers(0, 2, rows)], pa.string()),
        "ts_ms": pa.array(1_700_000_000_000 + np.arange(rows)),
        **{name: pa.array(rng.integers(0, 10**7, rows)) for name in INTS},
        **{name: pa.array([f"{name}_{i}" for i in rng.integers(0, 300, rows)]) for name in TEXTS},
        **{name: pa.array(rng.exponential(50.0, rows), pa.float32()) for name in NUMBERS},
        "recent_ads": pa.ListArray.from_arrays(offsets, pa.array(ids)),
        "p_click": pa.array(rng.random(rows)),
    }
    return pa.table(columns)


def writer(form: Format, schema: pa.Schema) -> Callable[[pa.Table], list[bytes]]:
    """Writes messages of a format."""
    if form == "json":
        return json_events
    if form == "arrow":
        return lambda table: [
            arrow_events(table.slice(start, ARROW_ROWS))
            for start in range(0, len(table), ARROW_ROWS)
        ]
    return FramedEvents(form, schema, "Impression", f"impressions-{form}", connect(REGISTRY)).write


def damaged(values: list[bytes]) -> list[bytes]:
    """The messages, every hundredth without its last byte."""
    return [value[:-1] if place % 100 == 50 else value for place, value in enumerate(values)]


def batches(values: list[bytes], form: Format) -> list[list[Message]]:
    """Messages as they are polled."""
    step = BATCH // ARROW_ROWS if form == "arrow" else BATCH
    messages = [
        Message(topic="impressions", partition=0, offset=offset, value=value)
        for offset, value in enumerate(values)
    ]
    return [messages[start : start + step] for start in range(0, len(messages), step)]


if __name__ == "__main__":
    main()
