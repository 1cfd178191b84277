"""Impressions and labels as applications write them: JSON, one event a message, or Arrow IPC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa


def named_tasks(labels: pa.Table, tasks: Sequence[str]) -> pa.Table:
    """Labels whose task is a name in place of its position in the settings."""
    names = pa.array(np.array(tasks, dtype=object)[labels["task"].to_numpy()], pa.string())
    return labels.set_column(labels.schema.get_field_index("task"), "task", names)


def json_events(table: pa.Table) -> list[bytes]:
    """One JSON object a row, UTF-8, columns in order, nulls written as null."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    text = frame.select(event=pl.struct(pl.all()).struct.json_encode())["event"]
    return text.cast(pl.Binary).to_list()


def arrow_events(table: pa.Table) -> bytes:
    """One message of all rows: an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())
