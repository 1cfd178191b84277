"""A random log of the join's inputs: disorder, late, repeated, orphaned and broken records.

One row is one message, in the order of its partition. Written in portions of arrival time, so that
a flow can be stopped and killed while the log still grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from flows.events.encoding import json_events
from flows.kafka.producer import BatchProducer
from flows.records import (
    BEGIN_MS,
    END_HEADER,
    END_MS,
    PredictionHeader,
    encode,
    impression_columns,
    prediction_schema,
    shard_of,
)
from flows.settings import EventTopic, Settings

START_MS = 1_700_000_000_000
IMPRESSIONS_A_SECOND = 400
BROKEN = (b"broken", b"", b"[1]", b'{"impression_id": "\xff"}', b'{"impression_id": "x"}')
MISSED, REPEATED = 0.1, 0.1
"""Share of impressions that the teacher missed, and of predictions that it wrote twice."""
MAX_DELAY_MS = 60_000
PATIENCE_S = 600.0
"""For a broker that was killed or stopped."""


def soak_settings(bootstrap: str, run: str, *, as_of: bool = True) -> Settings:
    """Tasks of every policy, small batches, frequent snapshots, and topics of its own."""
    sizes = {"impressions": 3, "labels": 2, "fm_predictions": 2, "examples": 2, "dead_letters": 1}
    topics = {name: {"name": f"{name}-{run}", "partitions": n} for name, n in sizes.items()}
    topics["impressions"]["lateness_s"] = topics["labels"]["lateness_s"] = 5
    tasks = [
        {"name": "click", "window_s": 10},
        {"name": "like", "window_s": 30, "early": True, "repeated_labels": "correct"},
        {"name": "conversion", "window_s": 60, "given": "click", "late_labels": "correct"},
        {"name": "purchase", "window_s": 60, "early": True, "late_labels": "correct"},
    ]
    return Settings.model_validate(
        {
            "domains": ["feed", "search"],
            "features": [
                {"name": "user_id", "kind": "categorical", "dtype": "int"},
                {"name": "device", "kind": "categorical"},
                {"name": "price", "kind": "numeric"},
                {"name": "recent", "kind": "sequence", "max_length": 3},
            ],
            "tasks": tasks,
            "students": [{"name": "one", "tasks": ["click"], "snapshot_every_s": 30}],
            "teacher": {
                "version": "as_of" if as_of else "newest",
                "lag_s": 5,
                "snapshot_every_s": 30,
            },
            "topics": {**topics, "snapshots": {"name": f"snapshots-{run}", "partitions": 1}},
            "das": {
                "shards": 4,
                "repeat_horizon_s": 30,
                "recovery_every_s": 0.3,
                "max_batch": 500,
            },
            "kafka": {"bootstrap": bootstrap},
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakLog:
    """Frames with partition, offset, arrival_ms and on_time, each in the order of arrival."""

    settings: Settings
    impressions: pl.DataFrame
    """With the columns of the event, and `value`: the message."""
    labels: pl.DataFrame
    """The same."""
    predictions: pl.DataFrame
    """In the columns of `prediction_schema`, and arrival_ms."""

    @property
    def arrivals_ms(self) -> tuple[int, int]:
        """First and last arrival."""
        both = pl.concat([f["arrival_ms"] for f in (self.impressions, self.labels)])
        return int(both.min()), int(both.max())  # type: ignore[arg-type]


def random_log(settings: Settings, num: int, seed: int) -> SoakLog:
    """A log of `num` impressions and about as many labels."""
    rng = np.random.default_rng(seed)
    shown = shown_impressions(num, rng)
    labels = labels_of(shown, settings, rng)
    impressions = placed(repeated(shown, rng), settings.topics.impressions, rng)
    impressions = impressions.with_columns(pl.col("ts_ms").cast(pl.Int64))
    return SoakLog(
        settings=settings,
        impressions=as_messages(impressions, [f.name for f in impression_columns(settings)]),
        labels=as_messages(
            placed(labels, settings.topics.labels, rng),
            ["impression_id", "task", "value", "ts_ms"],
        ),
        predictions=predictions_of(impressions, settings, rng),
    )


def shown_impressions(num: int, rng: np.random.Generator) -> pl.DataFrame:
    """One record an impression, ascending in time."""
    ts_ms = START_MS + np.sort(rng.integers(0, num * 1000 // IMPRESSIONS_A_SECOND, num))
    lengths = rng.integers(0, 6, num).tolist()
    price = np.where(rng.random(num) < 0.1, None, rng.integers(0, 10_000, num) / 64)  # type: ignore[call-overload]
    return pl.DataFrame(
        {
            "impression_id": [f"imp-{i}" for i in range(num)],
            "domain": np.where(rng.random(num) < 0.5, "feed", "search"),
            "ts_ms": ts_ms,
            "user_id": rng.integers(0, 1 << 40, num),
            "device": rng.choice(["phone", "büro-pc", ""], num),
            "price": pl.Series(price.tolist(), dtype=pl.Float32),
            "recent": [None if n == 5 else [f"ad{n}-{i}" for i in range(n)] for n in lengths],
        }
    )


def repeated(shown: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """With records of the same id: at the same time, or later and of another price."""
    chosen = shown.filter(pl.Series(rng.random(len(shown)) < 0.06))
    shift_ms = rng.choice([0, 0, 7_000, 29_999, 30_000, 45_000], len(chosen))
    price = pl.Series(np.where(shift_ms == 0, np.nan, shift_ms)).cast(pl.Float32).fill_nan(None)
    again = chosen.with_columns(
        pl.col("ts_ms") + pl.Series(shift_ms), pl.coalesce(price, pl.col("price")).alias("price")
    )
    return pl.concat([shown, again])


def labels_of(shown: pl.DataFrame, settings: Settings, rng: np.random.Generator) -> pl.DataFrame:
    """Labels before, within and behind the window, some that contradict, some of no impression."""
    parts = []
    for task in settings.tasks:
        for share in (0.25, 0.06):
            rows = shown.filter(pl.Series(rng.random(len(shown)) < share))
            shift_ms = rng.integers(-1000, task.window_ms * 3 // 2, len(rows))
            parts.append(
                rows.select(
                    impression_id=pl.when(pl.Series(rng.random(len(rows)) < 0.02))
                    .then(pl.lit("orphan-") + pl.col("impression_id"))
                    .otherwise("impression_id"),
                    task=pl.lit(task.name),
                    value=pl.Series(rng.integers(0, 2, len(rows)), dtype=pl.Int8),
                    ts_ms=pl.col("ts_ms") + pl.Series(shift_ms),
                )
            )
    return pl.concat(parts)


def placed(records: pl.DataFrame, topic: EventTopic, rng: np.random.Generator) -> pl.DataFrame:
    """Records and broken messages in their partitions, with their offsets, late ones marked."""
    num = len(records)
    late = rng.random(num) < 0.01
    delay_ms = np.where(
        late, rng.integers(0, MAX_DELAY_MS, num), rng.integers(0, topic.lateness_ms, num)
    )
    arrivals = records.with_columns(
        (pl.col("ts_ms") + pl.Series(delay_ms)).alias("arrival_ms"), is_broken=pl.lit(False)
    )
    broken = arrivals.sample(num // 100, seed=int(rng.integers(1 << 31))).select(
        "arrival_ms", is_broken=pl.lit(True)
    )
    found = pl.concat([arrivals, broken], how="diagonal")
    share = rng.dirichlet(np.full(topic.partitions, 2.0))
    partition = pl.Series(rng.choice(topic.partitions, len(found), p=share), dtype=pl.Int32)
    newest_ms = pl.col("ts_ms").cum_max().forward_fill().shift(1).fill_null(BEGIN_MS)
    return (
        found.with_columns(partition=partition)
        .sort("arrival_ms", maintain_order=True)
        .with_columns(
            offset=pl.int_range(pl.len(), dtype=pl.Int64).over("partition"),
            on_time=(pl.col("ts_ms") >= newest_ms.over("partition") - topic.lateness_ms),
            newest_ms=pl.col("ts_ms").cum_max().forward_fill().over("partition"),
        )
    )


def as_messages(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """With the bytes of each message, `message`."""
    events = iter(json_events(frame.filter(~pl.col("is_broken")).select(columns).to_arrow()))
    messages = [
        BROKEN[i % len(BROKEN)] if broken else next(events)
        for i, broken in enumerate(frame["is_broken"].to_list())
    ]
    return frame.with_columns(message=pl.Series(messages, dtype=pl.Binary))


def predictions_of(
    impressions: pl.DataFrame, settings: Settings, rng: np.random.Generator
) -> pl.DataFrame:
    """Logits of the impressions on time; a row that is written again has other ones."""
    rows = impressions.filter(pl.col("on_time"))
    rows = rows.filter(pl.Series(rng.random(len(rows)) >= MISSED))
    again = rows.filter(pl.Series(rng.random(len(rows)) < REPEATED))
    frames = [
        part.with_columns(
            index=pl.lit(0, pl.Int32),
            fm_version=pl.col("ts_ms") // 30_000,
            **{
                f"fm_logit_{task.name}": pl.Series(rng.normal(size=len(part)), dtype=pl.Float32)
                for task in settings.tasks
            },
        )
        for part in (rows, again)
    ]
    names = prediction_schema(settings).names
    return pl.concat(frames).select(*names, "arrival_ms").sort("arrival_ms", maintain_order=True)


class LogWriter:
    """Writes a log to its topics, stretch by stretch of arrival time."""

    def __init__(self, log: SoakLog, producer: BatchProducer) -> None:
        self._log, self._producer = log, producer
        self._topics = log.settings.topics
        self._written_ms = BEGIN_MS

    def write(self, until_ms: int) -> None:
        """Write what arrives before `until_ms` and was not written, and wait for its receipt."""
        now = (pl.col("arrival_ms") >= self._written_ms) & (pl.col("arrival_ms") < until_ms)
        impressions = self._log.impressions.filter(now)
        self._send(self._topics.impressions.name, impressions)
        self._send(self._topics.labels.name, self._log.labels.filter(now))
        self._predict(self._log.predictions.filter(now))
        lateness_ms = self._topics.impressions.lateness_ms
        newest = impressions.group_by("partition").agg(pl.col("newest_ms").max()).drop_nulls()
        for partition, newest_ms in newest.sort("partition").iter_rows():
            self._vouch(partition, newest_ms - lateness_ms)
        self._written_ms = until_ms
        self._producer.flush(PATIENCE_S)

    def end(self) -> None:
        """Write the rest and the ends of all partitions."""
        self.write(END_MS)
        for partition in range(self._topics.impressions.partitions):
            self._vouch(partition, END_MS)
        for topic in (self._topics.impressions, self._topics.labels):
            for partition in range(topic.partitions):
                self._producer.send(
                    topic.name, None, partition=partition, headers={END_HEADER: b""}
                )
        self._producer.flush(PATIENCE_S)

    def _send(self, topic: str, frame: pl.DataFrame) -> None:
        for partition, message in frame.select("partition", "message").iter_rows():
            self._producer.send(topic, message, partition=partition)

    def _predict(self, frame: pl.DataFrame) -> None:
        """Rows before the progress that vouches for them."""
        schema = prediction_schema(self._log.settings)
        topic, shards = self._topics.fm_predictions, self._log.settings.das.shards
        for (partition,), rows in frame.group_by("partition", maintain_order=True):
            table = rows.drop("arrival_ms").to_arrow().cast(schema)
            to = shard_of(table["impression_id"], shards) % topic.partitions
            header = PredictionHeader(partition=int(partition), progress_ms=BEGIN_MS)
            for q in range(topic.partitions):
                rows_of_q = table.filter(pa.array(to == q))
                self._producer.send(topic.name, encode(rows_of_q, header), partition=q)

    def _vouch(self, partition: int, progress_ms: int) -> None:
        topic = self._topics.fm_predictions
        header = PredictionHeader(partition=partition, progress_ms=progress_ms)
        empty = prediction_schema(self._log.settings).empty_table()
        for q in range(topic.partitions):
            self._producer.send(topic.name, encode(empty, header), partition=q)
