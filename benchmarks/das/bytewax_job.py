"""Stock Bytewax on the same events: a window that joins, a Python object an event.

    PYTHON_OF_BYTEWAX -m benchmarks.das.bytewax_job --events DIR --scratch DIR --spec '{"rows": N}'

`join_window` with a session a key, as its documentation joins streams by key. A session ends ten
minutes behind the last event of its key, so it counts a label a little longer than the window of
the others: the rate is compared, the positives are not.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.files import FileSink
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, SessionWindower
from bytewax.testing import TestingSource, run_main

from benchmarks.das.job import WINDOW_S, Clock, arguments, counts, report

Row = dict[str, Any]


def main() -> None:
    """Join, count, report."""
    given = arguments(__doc__)
    out = given.scratch / "examples.jsonl"
    rows, flow = given.spec["rows"], Dataflow("windows")
    lines = [head(given.events, name, rows) for name in ("impressions", "predictions", "labels")]
    clock = Clock()
    with clock.running():
        build(flow, lines, out)
        run_main(flow)
    report(clock, *counts([out]))


def head(events: Path, name: str, rows: int) -> list[str]:
    """The lines of the first impressions, and of what belongs to them."""
    with (events / f"{name}.jsonl").open(encoding="utf-8") as file:
        if name != "labels":
            return list(islice(file, rows))
        return [line for line in file if position(json.loads(line)) < rows]


def position(row: Row) -> int:
    """Place of an impression in the stream, which its id holds."""
    return int(row["impression_id"].partition("-")[0][3:]) - 10**12


def build(flow: Dataflow, inputs: list[list[str]], out: Path) -> None:
    """Decode, join in a window, write."""
    keyed = []
    for place, lines in enumerate(inputs):
        arrived = op.input(f"in_{place}", flow, TestingSource(lines, batch_size=1000))
        keyed.append(op.map(f"decode_{place}", arrived, decoded))  # ("impression_id", row)
    clock = EventClock(ts_getter=shown_at, wait_for_system_duration=timedelta(seconds=WINDOW_S))
    windower = SessionWindower(gap=timedelta(seconds=WINDOW_S))
    joined = win.join_window("join", clock, windower, *keyed)
    lines_out = op.map("example", joined.down, example)  # ("impression_id", "line")
    op.output("out", lines_out, FileSink(out))


def decoded(line: str) -> tuple[str, Row]:
    """An event by its impression."""
    row = json.loads(line)
    return row["impression_id"], row


def shown_at(row: Row) -> datetime:
    """Event time."""
    return datetime.fromtimestamp(row["ts_ms"] / 1000, timezone.utc)


def example(item: tuple[str, tuple[int, tuple[Row | None, ...]]]) -> tuple[str, str]:
    """A line of an example."""
    key, (_, (shown, predicted, label)) = item
    row = {**(shown or {}), "fm_logit_click": (predicted or {}).get("fm_logit_click")}
    return key, json.dumps({**row, "label": (label or {}).get("value", 0)})


if __name__ == "__main__":
    main()
