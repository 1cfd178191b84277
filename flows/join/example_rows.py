"""Rows of `examples`: impressions whose window has closed, with their labels and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from flows.join.leaving import WHOLE, Leaving
from flows.records import (
    ExampleHeader,
    encode,
    example_schema,
    impression_columns,
    parts,
)
from flows.settings import Settings
from monitoring.metrics import (
    DAS_CLOSED,
    DAS_CORRECTIONS,
    DAS_COVERED,
    DAS_EARLY,
    DAS_POSITIVES,
)

Message = tuple[bytes, int]
"""Content and number of rows."""


class ExampleRows:
    """Builds the examples of one shard."""

    def __init__(self, settings: Settings, shard: int) -> None:
        self._schema = example_schema(settings)
        self._copied = [f.name for f in impression_columns(settings)]
        self._tasks = [t.name for t in settings.tasks]
        self._shard = shard

    def build(
        self, impressions: pa.Table, leaving: Leaving, predictions: pa.Table, first: int
    ) -> pa.Table:
        """Examples in their order.

        Args:
            impressions: of each example, in order.
            leaving: their rows, in order.
            predictions: of each example, in order; nulls where there is none.
            first: number of the first example.
        """
        n = impressions.num_rows
        columns: dict[str, Any] = {name: impressions.column(name) for name in self._copied}
        correction = leaving.rows["correction"].to_numpy()
        for task, name in enumerate(self._tasks):
            mask, label = pa.array(leaving.masks_NT[:, task]), leaving.labels_NT[:, task]
            logit = predictions.column(f"fm_logit_{name}")
            columns[f"label_{name}"] = label
            columns[f"mask_{name}"] = mask
            columns[f"fm_logit_{name}"] = pc.if_else(mask, logit, pa.scalar(None, logit.type))
            DAS_POSITIVES.labels(name).inc(float(np.sum(label, where=correction == 0)))
        columns["fm_version"] = predictions.column("fm_version")
        columns["closed_ts_ms"] = leaving.rows["closed_ms"].to_numpy()
        columns["correction"] = correction.astype(np.int32)
        columns["shard"] = np.full(n, self._shard, dtype=np.int16)
        columns["number"] = np.arange(first, first + n, dtype=np.int64)
        table = pa.table(columns, schema=self._schema)
        count_domains(table)
        self._count_extras(leaving.rows)
        return table

    def _count_extras(self, rows: pl.DataFrame) -> None:
        """Count early rows and corrections."""
        extras = rows.filter(pl.col("task") != WHOLE)
        for task, early, num in extras.group_by("task", pl.col("correction") == 0).len().rows():
            (DAS_EARLY if early else DAS_CORRECTIONS).labels(self._tasks[task]).inc(num)

    def empty(self) -> pa.Table:
        """No example."""
        return self._schema.empty_table()


def count_domains(table: pa.Table) -> None:
    """Count examples, and those with a prediction, by domain."""
    domains = table.column("domain")
    covered = domains.filter(table.column("fm_version").is_valid())
    for counted, counter in ((domains, DAS_CLOSED), (covered, DAS_COVERED)):
        for pair in counted.value_counts().to_pylist():
            counter.labels(pair["values"]).inc(pair["counts"])


def messages(rows: pa.Table, shard: int, total: int, through_ms: int) -> list[Message]:
    """Messages of rows that end at number `total`, the last with the mark behind its rows."""
    first = total - rows.num_rows
    out = []
    for part in parts(rows):
        following = first + part.num_rows
        last = following == total
        header = ExampleHeader(
            shard=shard,
            first=first,
            through_ms=through_ms if last else None,
            total=total if last else None,
        )
        out.append((encode(part, header), part.num_rows))
        first = following
    return out
