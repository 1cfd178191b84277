"""Impressions and labels as applications write them.

JSON, Avro and Protobuf hold one event a message, Arrow IPC many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from flows.events import wire_format
from flows.events.avro_events import AvroWriter
from flows.events.framed_events import KINDS, Framed
from flows.events.protobuf_events import ProtobufWriter
from flows.events.schema_registry import Registry, WriterSchema

NAMESPACE = "exfm"


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


class FramedEvents:
    """Avro or Protobuf messages of one topic, each behind the id of its registered schema."""

    def __init__(
        self, format: Framed, columns: pa.Schema, name: str, topic: str, registry: Registry
    ) -> None:
        """Register the schema of the columns, if it is new.

        Args:
            format: of the messages.
            columns: of the events; those not nullable are required.
            name: of one event, e.g. `Impression`.
            topic: that they are written to.
            registry: that shall know the schema.

        Raises:
            RegistryError: it does not answer, or refuses the schema.
        """
        full_name = f"{NAMESPACE}.{name}"
        self._columns = columns
        self._writer: AvroWriter | ProtobufWriter
        if format == "avro":
            self._writer, path = AvroWriter(columns, full_name), b""
        else:
            self._writer, path = ProtobufWriter(columns, full_name), wire_format.FIRST_MESSAGE
        schema = WriterSchema(kind=KINDS[format], text=self._writer.text)
        self._prefix = wire_format.prefix(registry.register(topic, full_name, schema)) + path

    def write(self, table: pa.Table) -> list[bytes]:
        """A message for each row.

        Raises:
            ValueError: a required column holds a null, or a list one that Protobuf cannot hold.
        """
        if not len(table):
            return []
        rows = self._writer.write(table.select(self._columns.names).cast(self._columns))
        prefix = self._prefix
        return [prefix + row for row in rows]
