"""Columns of a writer's schema as those that the project reads.

By name: a column that only the writer has is ignored, a nullable one that it lacks is null. Kinds
must agree, whatever their width; integers may stand for numbers, and times for milliseconds.
"""

from __future__ import annotations

import pyarrow as pa

from flows.events.arrow_events import kind


class SchemaMismatch(ValueError):
    """No event of the writer's schema can be read; the message names the column and why."""


def check(writer: pa.Schema, reader: pa.Schema) -> None:
    """Compare a writer's columns with those that are read.

    Raises:
        SchemaMismatch: a required one is absent, or one is there twice or of another kind.
    """
    for field in reader:
        places = writer.get_all_field_indices(field.name)
        if not places and field.nullable:
            continue
        if len(places) != 1:
            raise SchemaMismatch(
                f"column {field.name!r} is required"
                if not places
                else f"column {field.name!r} is there {len(places)} times"
            )
        found = writer.field(places[0]).type
        if not agrees(found, field.type):
            raise SchemaMismatch(f"column {field.name!r} is {found}, expected is {field.type}")


def agrees(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a writer's type can stand for those of ours."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found)) and agrees(found.value_type, wanted.value_type)
    if pa.types.is_timestamp(found):
        return bool(pa.types.is_int64(wanted))
    if pa.types.is_floating(wanted) and pa.types.is_integer(found):
        return True
    return bool(kind(found) == kind(wanted))


def column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """The column of a field, as its type.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(batch.num_rows, field.type)
    found = batch.column(place)
    if found.type == field.type:
        return found
    if pa.types.is_timestamp(found.type):
        return found.cast(pa.timestamp("ms", found.type.tz), safe=False).cast(pa.int64())
    rounds = pa.types.is_floating(field.type) and pa.types.is_integer(found.type)
    return found.cast(field.type, safe=not rounds)
