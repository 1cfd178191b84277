"""Data sets that can be replayed: tables of impressions and labels, from files as published.

A data set is a module with `tables(folder, settings)`: all impressions by time, and all positive
labels by the time at which they become known. It raises ValueError if a file is missing, or if the
configuration names a feature or a task that is not in the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from flows.records import LABELS, impression_columns
from flows.settings import Settings

CHINA_MS = 8 * 3600 * 1000
"""Of Beijing's time before UTC."""
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


def tables(name: str, folder: Path, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Impressions and labels of a data set.

    Args:
        name: of the module.
        folder: with its files.
        settings: features to write, tasks.

    Raises:
        ValueError: a file is missing, or a feature or task is not in the data.
    """
    module = import_module(f"flows.datasets.{name}")
    made: tuple[pa.Table, pa.Table] = module.tables(folder, settings)
    return made


def check_tasks(settings: Settings, known: Collection[str], data: str) -> None:
    """Raise ValueError if a task is configured that the data has no labels for."""
    unknown = sorted({t.name for t in settings.tasks} - set(known))
    if unknown:
        raise ValueError(f"tasks: {data} knows {', '.join(known)}, got {unknown}")


def arrow_columns(rows: pl.DataFrame) -> dict[str, pa.Array]:
    """Columns by name, texts as Arrow strings."""
    columns = {}
    for name in rows.columns:
        array = rows[name].rechunk().to_arrow()
        text = pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
        columns[name] = array.cast(pa.string()) if text else array
    return columns


def impressions_of(columns: Mapping[str, pa.Array], settings: Settings, data: str) -> pa.Table:
    """Impressions as an application writes them.

    Args:
        columns: that may be features, by name.
        settings: features to write.
        data: name of the data set, for messages.

    Raises:
        ValueError: a feature is not among the columns.
    """
    fields = impression_columns(settings)
    missing = [f.name for f in fields if f.name not in columns]
    if missing:
        raise ValueError(f"features: {data} has no {', '.join(missing)}")
    return pa.Table.from_arrays(
        [columns[f.name].cast(f.type) for f in fields], schema=pa.schema(fields)
    )


def labels_of(positives: Iterable[pl.DataFrame]) -> pa.Table:
    """Positive labels of all tasks by time.

    Args:
        positives: of each task: `impression_id`, and `known_ms`, when the label becomes known.
    """
    parts = []
    for number, rows in enumerate(positives):
        columns = [
            rows["impression_id"].to_arrow().cast(pa.string()),
            pa.array(np.full(len(rows), number, np.int16)),
            pa.array(np.ones(len(rows), np.int8)),
            rows["known_ms"].to_arrow(),
        ]
        parts.append(pa.Table.from_arrays(columns, schema=LABELS))
    return pa.concat_tables(parts).sort_by([("ts_ms", "ascending"), ("task", "ascending")])
