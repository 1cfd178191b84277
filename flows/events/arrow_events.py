"""Arrow IPC messages, each a stream of many events, to columns."""

from __future__ import annotations

import struct

import pyarrow as pa

from flows.events.arrow_sizes import expanded_bytes, unpacked_bytes
from flows.events.schema_resolution import agrees, as_type

UNREADABLE = (pa.ArrowException, ValueError, TypeError, OSError, MemoryError, struct.error)
"""What reading damaged bytes raises; a ValueError for a column's name that is not UTF-8."""
MAX_BYTES = 128 * 2**20
"""A message that would become larger is refused."""
MAX_ROWS = 2**18
"""So is one of more rows."""


class BadMessage(ValueError):
    """The message as a whole cannot be read; `reason` is one of few names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse(message: bytes | None, schema: pa.Schema) -> pa.Table:
    """Rows of one message in the columns of `schema`; other columns are ignored.

    Columns may have any type that agrees with ours (`schema_resolution`), as long as every value
    fits; nullable columns may be absent.

    Raises:
        BadMessage: the bytes are no Arrow IPC stream or go on behind its end, would become too
            large, or its columns have other types.
    """
    if not message:
        raise BadMessage("empty")
    try:
        refuse_if(unpacked_bytes(message) > MAX_BYTES)
        source = pa.BufferReader(message)
        table = pa.ipc.open_stream(source).read_all()
        table.validate(full=True)
    except BadMessage:
        raise
    except UNREADABLE as error:
        raise BadMessage("not_arrow") from error
    if source.tell() != len(message):
        raise BadMessage("not_arrow")  # e.g. a second stream, whose events would be lost
    refuse_if(table.num_rows > MAX_ROWS)
    return pa.table([column(table, field) for field in schema], schema=nullable(schema))


def refuse_if(too_large: bool) -> None:
    """Raise BadMessage if a message is too large."""
    if too_large:
        raise BadMessage("too_large")


def column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """The column of a field, as its type.

    Raises:
        BadMessage: it is absent and required, there twice, of another kind, or too large.
    """
    places = table.schema.get_all_field_indices(field.name)
    if not places and field.nullable:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    if len(places) != 1:
        raise BadMessage("duplicate_field" if places else "missing_field")
    found = table.column(places[0])
    if found.type == field.type:
        return found
    if not agrees(found.type, field):
        raise BadMessage("wrong_type")
    refuse_if(expanded_bytes(found) > MAX_BYTES)
    try:
        return as_type(found, field.type)
    except pa.ArrowException as error:
        raise BadMessage("wrong_type") from error


def nullable(schema: pa.Schema) -> pa.Schema:
    """The same columns, all of which may hold nulls."""
    return pa.schema([field.with_nullable(True) for field in schema])


def one_row(table: pa.Table, row: int) -> bytes:
    """An Arrow IPC stream of one row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(row, 1))
    return bytes(sink.getvalue())
