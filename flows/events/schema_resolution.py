"""Columns of a writer's schema as those that the project reads, the same for every format.

By name: a column that only the writer has is ignored, a nullable one that it lacks is null. Kinds
must agree, whatever their width; nulls may stand for anything, integers for numbers, and times for
the event's time.
"""

from __future__ import annotations

import pyarrow as pa

TIME = "ts_ms"
"""The column that a time may stand for: of a feature, milliseconds may not be what is meant."""


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
        if not agrees(found, field):
            raise SchemaMismatch(f"column {field.name!r} is {found}, expected is {field.type}")


def agrees(found: pa.DataType, field: pa.Field) -> bool:
    """Whether values of a writer's type can stand in one of our columns."""
    if pa.types.is_timestamp(found):
        return bool(field.name == TIME)
    return stands_for(found, field.type)


def stands_for(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type other than a time can stand for those of another."""
    if pa.types.is_dictionary(found):
        return stands_for(found.value_type, wanted)
    if pa.types.is_null(found):
        return True
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list) and stands_for(found.value_type, wanted.value_type)
    return kind(found) == kind(wanted) or (kind(found), kind(wanted)) == ("integer", "number")


def kind(found: pa.DataType) -> str:
    """What values of a type are, whatever their width."""
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "string"
    if pa.types.is_string_view(found):
        return "string"
    if pa.types.is_integer(found):
        return "integer"
    return "number" if pa.types.is_floating(found) else str(found)


def column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """The column of a field that agrees with it, as its type.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(batch.num_rows, field.type)
    return as_type(batch.column(place), field.type)


def as_type(found: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Values of a type that agrees with ours: times as milliseconds, integers rounded to floats.

    Raises:
        pa.ArrowException: a value does not fit, or stands in a layout that Arrow cannot read.
    """
    if found.type == wanted:
        return found
    if pa.types.is_timestamp(found.type):
        is_finer = found.type.unit in ("us", "ns")
        found = found.cast(pa.timestamp("ms", found.type.tz), safe=not is_finer)
        return found.cast(pa.int64())
    rounds = pa.types.is_floating(wanted) and pa.types.is_integer(found.type)
    return found.cast(wanted, safe=not rounds)
