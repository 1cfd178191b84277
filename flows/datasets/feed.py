"""Writes a run's events to Kafka: the simulated market, or a dataset."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from flows.datasets.replay import Progress, Slice, replay, sliced
from flows.kafka.client import client_config, ensure_topics, producer_config
from flows.kafka.producer import BatchProducer
from flows.letters.replay import refuse_ended
from flows.records import floor_ms
from flows.run.process import announced, configure_logging
from flows.run_folder import RunFolder, write_json
from flows.runner import stop_requested, stopping_on_signals
from flows.settings import Settings, SettingsError

PACED_STEP_MS = 60_000
UNPACED_STEP_MS = 3_600_000
"""Event time that a dataset is written by: short where a clock paces it, long where cost counts."""
PROCESS = "events"


def market(settings: Settings, seconds: float) -> Iterator[Slice]:
    """A simulated market that begins when the first slice is asked for.

    Raises:
        SettingsError: the market cannot be simulated as configured.
    """
    from flows.datasets.market import Market

    try:
        made_up = Market(settings)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    tick_ms = made_up.tick_ms
    start_ms = floor_ms(round(time.time() * 1000), tick_ms)
    for tick in range(round(seconds * 1000 / tick_ms)):
        begin_ms = start_ms + tick * tick_ms
        impressions, labels = made_up.slice(begin_ms, begin_ms + tick_ms)
        yield Slice(
            start_ms=begin_ms,
            end_ms=begin_ms + tick_ms,
            impressions=impressions,
            labels=labels,
        )


def dataset(name: str, settings: Settings, data: Path, speed: float | None) -> Iterator[Slice]:
    """A data set (flows/datasets/dataset.py) in the folder `data`, in slices fit for `speed`.

    Raises:
        SettingsError: files are missing, or a feature or task is not in the data.
    """
    from flows.datasets.dataset import tables

    try:
        impressions, labels = tables(name, data, settings)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return sliced(impressions, labels, UNPACED_STEP_MS if speed is None else PACED_STEP_MS)


def write_events(
    settings: Settings, folder: RunFolder, events: Iterator[Slice], speed: float | None
) -> Progress:
    """Write events until they end or a signal asks to stop, with progress on a terminal.

    Either way the log has ended then.

    Args:
        settings: topics, `noise`.
        folder: of the run; `written.json` will say what was written.
        events: consecutive in event time.
        speed: event seconds a second; None: as fast as possible.

    Raises:
        ReplayRefused: a log that they belong to has ended.
    """
    configure_logging()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        stopping_on_signals(),
        announced(folder, PROCESS),
        Bar(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("reading the events")

        def show(progress: Progress) -> None:
            counts = f"{progress.impressions:,} impressions, {progress.labels:,} labels"
            bar.update(task, description=f"written: {counts}")

        ensure_topics(settings)
        for topic in (settings.topics.impressions, settings.topics.labels):
            for partition in range(topic.partitions):
                refuse_ended(client_config(settings.kafka), topic.name, partition)
        written = replay(
            settings,
            events,
            BatchProducer(producer_config(settings.kafka)),
            speed=speed,
            on_progress=show,
            should_stop=stop_requested,
        )
        record(folder, written)
    return written


def record(folder: RunFolder, progress: Progress) -> None:
    """Note in the run's folder what was written; broken messages in hexadecimal."""
    content: dict[str, Any] = {
        "impressions": progress.impressions,
        "labels": progress.labels,
        "added": progress.added,
        "malformed": [[topic, value.hex()] for topic, value in progress.malformed],
    }
    write_json(folder.root / "written.json", content)
