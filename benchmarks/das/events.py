"""The events of the benchmark as files of JSON lines: impressions, predictions, labels.

An hour of one site, in the order of event time: impressions with twelve features, one of them a
list of ten ids (some 450 bytes), the teacher's prediction for each, and a click on one in twenty,
few of them too late to count. The same rows always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.das.job import INTS, NUMBERS, TEXTS, WINDOW_S
from benchmarks.formats import settings_of
from flows.das_settings import Das
from flows.settings import EventTopic, Settings, Task, Topic, Topics

BEGIN_MS = 1_700_000_000_000
SPAN_MS = 3_600_000
"""Event time of all rows; their rate follows from their number."""
CLICKS = 0.05
MEAN_DELAY_MS = 120_000.0
IDS_A_LIST = 10
CHUNK = 100_000
"""Rows encoded at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventFiles:
    """Where the events stand."""

    impressions: Path
    predictions: Path
    labels: Path
    num_impressions: int
    num_labels: int
    num_positives: int
    """Labels within the window: what a right join finds."""

    @property
    def num_events(self) -> int:
        """Of all three."""
        return 2 * self.num_impressions + self.num_labels


def settings(shards: int = 4) -> Settings:
    """Configuration of the job: a task with a window of ten minutes, topics of one partition."""
    topics = Topics(
        impressions=EventTopic(name="impressions", partitions=1),
        labels=EventTopic(name="labels", partitions=1),
        fm_predictions=Topic(name="fm_predictions", partitions=1),
        examples=Topic(name="examples", partitions=1),
    )
    tasks = (Task(name="click", window_s=WINDOW_S),)
    return settings_of().model_copy(
        update={"tasks": tasks, "topics": topics, "das": Das(shards=shards)}
    )


def event_files(rows: int, work_folder: Path) -> EventFiles:
    """The files for a number of impressions, written at their first use."""
    folder = work_folder / f"events-{rows}"
    times_N, labels = times(rows)
    inside = labels.filter(pl.col("ts_ms") - pl.col("shown_ms") < WINDOW_S * 1000)
    found = EventFiles(
        impressions=folder / "impressions.jsonl",
        predictions=folder / "predictions.jsonl",
        labels=folder / "labels.jsonl",
        num_impressions=rows,
        num_labels=labels.height,
        num_positives=inside.height,
    )
    folder.mkdir(parents=True, exist_ok=True)
    written = labels.drop("shown_ms")
    _write(found.impressions, rows, lambda start, end: impressions(start, times_N[start:end]))
    _write(found.predictions, rows, lambda start, end: predictions(start, times_N[start:end]))
    _write(found.labels, labels.height, lambda start, end: written[start:end])
    return found


def times(rows: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], pl.DataFrame]:
    """Times of the impressions, and all labels in order, with the time of their impression."""
    rng = np.random.default_rng(7)
    times_N = BEGIN_MS + np.sort(rng.integers(0, SPAN_MS, rows))
    clicked = np.flatnonzero(rng.random(rows) < CLICKS)
    delays = rng.exponential(MEAN_DELAY_MS, len(clicked)).astype(np.int64)
    labels = pl.DataFrame(
        {
            "impression_id": ids(clicked),
            "task": pl.repeat("click", len(clicked), eager=True),
            "value": pl.repeat(1, len(clicked), eager=True),
            "ts_ms": times_N[clicked] + delays,
            "shown_ms": times_N[clicked],
        }
    )
    return times_N, labels.sort("ts_ms")


def ids(position_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pl.Series:
    """Ids of the impressions at some positions of the stream."""
    frame = pl.DataFrame({"at": position_N})
    return frame.select(id=pl.format("18b{}-{}", pl.col("at") + 10**12, pl.col("at") % 97))["id"]


def impressions(start: int, times_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pl.DataFrame:
    """The impressions from a position on."""
    n = len(times_N)
    rng = np.random.default_rng([1, start])
    columns: dict[str, pl.Series] = {
        "impression_id": ids(np.arange(start, start + n)),
        "domain": pl.Series(["feed", "search"]).gather(rng.integers(0, 2, n)),
        "ts_ms": pl.Series(times_N),
        **{name: pl.Series(rng.integers(0, 10**7, n)) for name in INTS},
    }
    for name in TEXTS:
        texts = pl.Series([f"{name}_{i}" for i in range(300)])
        columns[name] = texts.gather(rng.integers(0, 300, n))
    for name in NUMBERS:
        columns[name] = pl.Series(rng.exponential(50.0, n).astype(np.float32))
    lists_N = rng.integers(0, 10**7, (n, IDS_A_LIST))
    columns["recent_ads"] = pl.Series(lists_N).cast(pl.List(pl.Int64))
    return pl.DataFrame(columns)


def predictions(start: int, times_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pl.DataFrame:
    """The teacher's predictions for the impressions from a position on, one partition."""
    n = len(times_N)
    rng = np.random.default_rng([2, start])
    at = np.arange(start, start + n)
    return pl.DataFrame(
        {
            "impression_id": ids(at),
            "ts_ms": times_N,
            "partition": np.zeros(n, dtype=np.int32),
            "offset": at,
            "index": np.zeros(n, dtype=np.int32),
            "fm_version": np.full(n, 3),
            "fm_logit_click": rng.normal(-3.0, 1.0, n).astype(np.float32),
        }
    )


def _write(path: Path, rows: int, part: Callable[[int, int], pl.DataFrame]) -> None:
    """Write rows as JSON lines, unless the file is there."""
    if path.exists():
        return
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        for start in range(0, rows, CHUNK):
            part(start, min(rows, start + CHUNK)).write_ndjson(file)
    draft.rename(path)
