"""What an impression or a label must fulfil beyond its columns' types, checked by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.records import ADDRESS, LABELS, impression_columns
from flows.settings import Settings

OLDEST_MS = 946_684_800_000
"""2000-01-01."""
NEWEST_MS = 4_102_444_800_000
"""2100-01-01."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Faults = Callable[[pa.Table], list[tuple[str, Mask]]]
"""Rows of a table that break a rule, by reason; a row's first reason counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRules:
    """The form of one kind of event."""

    schema: pa.Schema
    """As applications write it."""
    faults: Faults
    """Given rows of that schema whose required columns hold no null."""
    finish: Callable[[pa.Table], pa.Table]
    """Good rows, with their address, as the flows know them."""


def impression_rules(settings: Settings) -> EventRules:
    """An impression: known domain, finite numbers; sequences are cut to their declared length."""
    schema = pa.schema(impression_columns(settings))
    domains = pa.array(settings.domains, pa.string())
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    lengths = {f.name: f.max_length for f in settings.features if f.kind == "sequence"}

    def faults(table: pa.Table) -> list[tuple[str, Mask]]:
        return [
            *identity_faults(table),
            ("unknown_domain", mask(pc.invert(pc.is_in(table["domain"], domains)))),
            *(("not_finite", not_finite(table[name])) for name in floats),
        ]

    def finish(table: pa.Table) -> pa.Table:
        for name, length in lengths.items():
            table = shorten(table, name, length)
        return table

    return EventRules(schema=schema, faults=faults, finish=finish)


def label_rules(settings: Settings) -> EventRules:
    """A label: known task, value 0 or 1; the task's name becomes its position."""
    tasks = pa.array([task.name for task in settings.tasks], pa.string())
    schema = LABELS.set(
        LABELS.get_field_index("task"), pa.field("task", pa.string(), nullable=False)
    )
    finished = pa.schema([*LABELS, *ADDRESS])

    def faults(table: pa.Table) -> list[tuple[str, Mask]]:
        return [
            *identity_faults(table),
            ("unknown_task", mask(pc.invert(pc.is_in(table["task"], tasks)))),
            ("label_not_0_or_1", outside(table["value"], 0, 1)),
        ]

    def finish(table: pa.Table) -> pa.Table:
        position = pc.index_in(table["task"], tasks)
        return table.set_column(1, "task", position.cast(pa.int16())).cast(finished)

    return EventRules(schema=schema, faults=faults, finish=finish)


def identity_faults(table: pa.Table) -> list[tuple[str, Mask]]:
    """Faults of the columns that impressions and labels share."""
    return [
        ("empty_id", mask(pc.equal(pc.binary_length(table["impression_id"]), 0))),
        ("ts_out_of_range", outside(table["ts_ms"], OLDEST_MS, NEWEST_MS)),
    ]


def missing(table: pa.Table, names: Sequence[str]) -> list[tuple[str, Mask]]:
    """Rows with a null in a required column."""
    return [("missing_field", mask(table[n].is_null())) for n in names if table[n].null_count]


def outside(column: pa.ChunkedArray, least: int, most: int) -> Mask:
    """Values outside [least, most], of a column without nulls."""
    values_N = column.to_numpy()
    return np.asarray((values_N < least) | (values_N > most))


def not_finite(column: pa.ChunkedArray) -> Mask:
    """NaN and infinite values; null is neither."""
    return mask(pc.fill_null(pc.invert(pc.is_finite(column)), False))


def mask(column: pa.ChunkedArray) -> Mask:
    """A boolean column without nulls as an array."""
    return np.asarray(column.to_numpy(), dtype=np.bool_)


def shorten(table: pa.Table, name: str, length: int) -> pa.Table:
    """Keep the first `length` ids of a sequence column."""
    column = table[name]
    longest = pc.max(pc.list_value_length(column)).as_py()
    if longest is None or longest <= length:
        return table
    field = table.schema.field(name)
    short = pc.list_slice(column, 0, length, return_fixed_size_list=False).cast(field.type)
    return table.set_column(table.schema.get_field_index(name), field, short)
