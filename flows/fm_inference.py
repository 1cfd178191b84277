"""Logs the teacher's prediction of every impression, and how far in event time it has come.

    python -m bytewax.run flows.fm_inference:flow

Reads `impressions`, writes `fm_predictions`. A partition reports its progress before it waits for a
snapshot, and waiting parks that partition alone: what it vouches for lets the join go on, which
lets the trainer go on, which brings the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Dataflow

from flows.environment import described
from flows.inference.impression_source import Due, ImpressionSource
from flows.inference.teacher import Integers, Scorers, require_scored, store_path
from flows.kafka.sink import TopicSink
from flows.panics import remembering
from flows.records import (
    BEGIN_MS,
    PredictionHeader,
    encode,
    parts,
    prediction_schema,
    shard_of,
)
from flows.run_folder import RunFolder
from flows.runner import Placement, run_flow
from flows.settings import Settings
from monitoring.metrics import FM_BATCH, FM_SCORED, FM_VERSION_AGE
from onnx_export.session import Logits
from onnx_export.store import SnapshotStore

Message = tuple[str, tuple[bytes | None, bytes, int]]


class Predictor:
    """Scores impressions that are due and splits the rows over the prediction partitions."""

    def __init__(self, settings: Settings, store: SnapshotStore) -> None:
        self._shards = settings.das.shards
        self._partitions = settings.topics.fm_predictions.partitions
        self._tasks = [task.name for task in settings.tasks]
        self._schema = prediction_schema(settings)
        self._store = store
        self._scorers = Scorers(store)

    @remembering
    def messages(self, due: Due) -> list[Message]:
        """Predictions and progress, for every partition of `fm_predictions`."""
        with FM_BATCH.time():
            rows = self._predict(due)
        partition_of = shard_of(rows["impression_id"], self._shards) % self._partitions
        messages: list[Message] = []
        for partition in range(self._partitions):
            mine = rows.filter(pa.array(partition_of == partition))
            messages += (
                (str(partition), (None, value, num))
                for value, num in encoded(mine, due.partition, due.progress_ms)
            )
        return messages

    def _predict(self, due: Due) -> pa.Table:
        versions = due.versions
        if versions is None:
            newest = self._scorers.newest()
            versions = np.full(due.table.num_rows, BEGIN_MS if newest is None else newest)
        logits_BT = np.full((len(versions), len(self._tasks)), np.nan, dtype=np.float32)
        scored = np.ones(len(versions), dtype=bool)
        for version in np.unique(versions).tolist():
            mine = versions == version
            if version == BEGIN_MS:
                continue
            try:
                logits_BT[mine] = self._score(version, due.features.filter(pa.array(mine)))
            except FileNotFoundError:
                if due.versions is None:
                    raise
                require_scored(self._store, due.table["ts_ms"].to_numpy()[mine])
                scored[mine] = False
        self._observe(due, versions)
        return self._rows(due.table, versions, logits_BT).filter(pa.array(scored))

    def _score(self, version: int, features: pa.Table) -> Logits:
        return self._scorers.get(version).score_columns(features)

    def _rows(self, table: pa.Table, versions: Integers, logits_BT: Logits) -> pa.Table:
        known = versions != BEGIN_MS
        columns = {
            **{name: table[name] for name in ("impression_id", "ts_ms")},
            **{name: table[name] for name in ("partition", "offset", "index")},
            "fm_version": pa.array(versions, mask=~known),
        }
        for position, task in enumerate(self._tasks):
            logits = np.ascontiguousarray(logits_BT[:, position])
            columns[f"fm_logit_{task}"] = pa.array(logits, mask=~known)
        return pa.table(columns).cast(self._schema)

    def _observe(self, due: Due, versions: Integers) -> None:
        num_known = int((versions != BEGIN_MS).sum())
        FM_SCORED.labels("true").inc(num_known)
        FM_SCORED.labels("false").inc(len(versions) - num_known)
        if num_known and versions[-1] != BEGIN_MS:
            age_ms = due.table["ts_ms"][-1].as_py() - int(versions[-1])
            FM_VERSION_AGE.set(age_ms / 1000)


def encoded(rows: pa.Table, partition: int, progress_ms: int) -> Iterable[tuple[bytes, int]]:
    """Messages of rows, the last of which carries the progress behind them."""
    found = parts(rows)
    for number, part in enumerate(found, 1):
        vouched_ms = progress_ms if number == len(found) else BEGIN_MS
        header = PredictionHeader(partition=partition, progress_ms=vouched_ms)
        yield encode(part, header), part.num_rows


def build(settings: Settings, folder: RunFolder) -> Dataflow:
    """The dataflow from impressions to predictions."""
    store = SnapshotStore(store_path(settings, folder))
    predictor = Predictor(settings, store)
    flow = Dataflow("fm_inference")
    due = op.input("impressions", flow, ImpressionSource(settings, store))  # Due
    messages = op.flat_map("score", due, predictor.messages)  # ("partition", (None, bytes, rows))
    op.output("fm_predictions", messages, TopicSink(settings, settings.topics.fm_predictions))
    return flow


def flow() -> Dataflow:
    """The dataflow of EXFM_CONFIG and EXFM_RUN."""
    return build(*described())


def run(settings: Settings, folder: RunFolder, placement: Placement) -> None:
    """Score until the log has ended or a signal asks to stop."""
    recovery = folder.state / "fm-inference"
    run_flow(
        build(settings, folder),
        placement,
        recovery=recovery,
        epoch_s=settings.das.recovery_every_s,
    )
