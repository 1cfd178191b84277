"""What further processes of the join bring, by the wall clock, on a machine with enough cores.

    python -m benchmarks.das.scaling --rows 1000000 --processes 1,2,4

Each number of processes reads the same topics, with a partition for each process, in three rounds
in turns; the fastest counts. Every process keeps a core and a half busy, its client's threads
included, and the broker one to two: with fewer cores `exfm bench das` tells more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.das.kafka import ROWS_OVER_PENDING, WINDOW_S, Kind, Rate, fastest
from benchmarks.das.kafka_topics import broker, fill, settings_for
from flows.join.routing import insist_on_shards


def scaling(rows: int, processes: Sequence[int]) -> list[Rate]:
    """Rates with `rows` impressions pending, one of each number of processes."""
    partitions = max(processes)
    with broker() as (kafka, folder):
        settings = settings_for(kafka.bootstrap, "fill", WINDOW_S, partitions=partitions)
        insist_on_shards(settings.das.shards, partitions)
        filled = fill(settings, ROWS_OVER_PENDING * rows)
        kinds = [Kind(name=f"{num}-processes", processes=num) for num in processes]
        return fastest(settings, folder, kinds, filled)


def table(processes: Sequence[int], found: Sequence[Rate]) -> Table:
    """Rates beside each other, over that of the first."""
    shown = Table(title=f"The join through Kafka, {os.cpu_count()} cores with the broker's")
    for head in ("processes", "events/s", "over the first", "events a CPU second", "a core each"):
        shown.add_column(head, justify="right")
    for num, rate in zip(processes, found, strict=True):
        shown.add_row(
            str(num),
            f"{rate.events_s:,.0f}",
            f"{rate.events_s / found[0].events_s:.2f} x",
            f"{rate.events_cpu_s:,.0f}",
            f"{found[0].busiest_cpu_s / rate.busiest_cpu_s:.2f} x",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="impressions pending")
    parser.add_argument("--processes", default="1,2", help="numbers of processes")
    given = parser.parse_args(argv)
    processes = [int(num) for num in given.processes.split(",")]
    if min(processes) < 1:
        parser.error(f"--processes {given.processes} must be 1 or more each")
    Console(file=sys.stdout).print(table(processes, scaling(given.rows, processes)))


if __name__ == "__main__":
    main()
