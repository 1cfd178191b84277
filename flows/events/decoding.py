"""Messages of an event topic to columns: an event is a row, or set aside with its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from flows.events import arrow_events
from flows.events.framed_events import FramedParser
from flows.events.json_events import JsonReader
from flows.events.row_sizes import larger
from flows.events.rules import Faults, Mask, missing
from flows.events.schema_registry import connect
from flows.records import ADDRESS, MAX_EVENT_BYTES
from flows.registry_settings import SchemaRegistry
from flows.settings import Format


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """An event that is no row."""

    reason: str
    """One of few names."""
    message: Message
    """That held it."""
    index: int | None
    """Its row, if the rest of the message could be read; None for a whole message."""
    value: bytes | None
    """Its bytes: of the message, or an Arrow IPC stream of the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What a batch of messages held."""

    table: pa.Table
    """Good events in the order of the log, with ADDRESS."""
    rejected: list[Rejected]
    """The others."""
    messages: Sequence[Message]
    """The batch."""
    origin_N: np.ndarray[Any, np.dtype[np.int64]]
    """Position in `messages` of each row's message, shape [N]."""


class EventDecoder:
    """Decodes the messages of one topic."""

    def __init__(
        self,
        schema: pa.Schema,
        format: Format,
        faults: Faults,
        registry: SchemaRegistry = SchemaRegistry(),  # noqa: B008, a frozen value
    ) -> None:
        """Decode events of a form.

        Args:
            schema: columns as applications write them; those not nullable are required.
            format: arrow: an IPC stream of events a message; others: one event a message.
            faults: further rules.
            registry: that knows the schemas, if the format has any.

        Raises:
            SettingsError: the registry cannot be used as configured.
        """
        self._schema = schema
        self._decoded = pa.schema([*schema, *ADDRESS])
        self._required = [field.name for field in schema if not field.nullable]
        self._parse = None if format == "arrow" else parser(schema, format, registry)
        self._faults = faults

    def decode(self, messages: Sequence[Message]) -> Decoded:
        """Rows and rejected events of messages; whether an event is good depends on it alone."""
        rejected: list[Rejected] = []
        if self._parse is None:
            columns, origin_N, index_N = self._read_many(messages, rejected)
        else:
            columns, origin_N, index_N = self._read_one_each(self._parse, messages, rejected)
        found = self._addressed(columns, messages, origin_N, index_N)
        everything = Decoded(table=found, rejected=rejected, messages=messages, origin_N=origin_N)
        good_N = np.ones(found.num_rows, dtype=np.bool_)
        for reason, bad_N in self._broken_rules(columns):
            rejected += self.reject(everything, bad_N & good_N, reason)
            good_N &= ~bad_N
        if not good_N.all():
            found, origin_N = found.filter(pa.array(good_N)), origin_N[good_N]
        return Decoded(
            table=found.cast(self._decoded),
            rejected=rejected,
            messages=messages,
            origin_N=origin_N,
        )

    def reject(self, decoded: Decoded, bad_N: Mask, reason: str) -> list[Rejected]:
        """The rows of a mask as rejected events."""
        rejected = []
        for row in np.flatnonzero(bad_N).tolist():
            message = decoded.messages[int(decoded.origin_N[row])]
            if self._parse is not None:
                index, value = None, message.value()
            else:
                index = decoded.table["index"][row].as_py()
                value = arrow_events.one_row(decoded.table.select(self._schema.names), row)
            rejected.append(Rejected(reason=reason, message=message, index=index, value=value))
        return rejected

    def _broken_rules(self, columns: pa.Table) -> list[tuple[str, Mask]]:
        large_N = larger(columns, MAX_EVENT_BYTES)
        too_large = [] if large_N is None else [("too_large", large_N)]
        absent = missing(columns, self._required)
        if not absent:
            return [*too_large, *self._faults(columns)]
        # rules are written for columns without nulls: look at the complete rows only
        complete_N = ~np.logical_or.reduce([bad_N for _, bad_N in absent])
        spread = []
        for reason, bad_M in self._faults(columns.filter(pa.array(complete_N))):
            bad_N = np.zeros(columns.num_rows, dtype=np.bool_)
            bad_N[complete_N] = bad_M
            spread.append((reason, bad_N))
        return [*too_large, *absent, *spread]

    def _read_one_each(
        self, parse: Parse, messages: Sequence[Message], rejected: list[Rejected]
    ) -> _Read:
        values = list(map(Message.value, messages))
        columns, bad = parse(values)
        for position, reason in bad.items():
            rejected.append(_whole(messages[position], reason))
        good_N = np.ones(len(values), dtype=np.bool_)
        good_N[list(bad)] = False
        origin_N = np.flatnonzero(good_N)
        return columns, origin_N, np.zeros(len(origin_N), dtype=np.int32)

    def _read_many(self, messages: Sequence[Message], rejected: list[Rejected]) -> _Read:
        tables = [arrow_events.nullable(self._schema).empty_table()]
        origin = [0]
        for position, message in enumerate(messages):
            try:
                tables.append(arrow_events.parse(message.value(), self._schema))
                origin.append(position)
            except arrow_events.BadMessage as error:
                rejected.append(_whole(message, error.reason))
        counts = [table.num_rows for table in tables]
        index_N = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
        return pa.concat_tables(tables), np.repeat(np.array(origin), counts), index_N

    def _addressed(
        self,
        columns: pa.Table,
        messages: Sequence[Message],
        origin_N: np.ndarray[Any, np.dtype[np.int64]],
        index_N: np.ndarray[Any, np.dtype[np.int32]],
    ) -> pa.Table:
        num = len(messages)
        partition_M = np.fromiter(map(Message.partition, messages), dtype=np.int32, count=num)
        offset_M = np.fromiter(map(Message.offset, messages), dtype=np.int64, count=num)
        values = (partition_M[origin_N], offset_M[origin_N], index_N)
        for field, column_N in zip(ADDRESS, values, strict=True):
            columns = columns.append_column(field, pa.array(column_N, field.type))
        return columns


Parse = Callable[[Sequence[bytes | None]], tuple[pa.Table, dict[int, str]]]
"""Messages of one event each: columns of the good ones, reasons of the others by position."""
_Read = tuple[pa.Table, np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int32]]]


def _whole(message: Message, reason: str) -> Rejected:
    return Rejected(reason=reason, message=message, index=None, value=message.value())


def parser(schema: pa.Schema, format: Format, registry: SchemaRegistry) -> Parse:
    """Reads messages of a format that holds one event each.

    Args:
        schema: columns as applications write them.
        format: any but arrow.
        registry: that knows the schemas of avro and protobuf.

    Raises:
        SettingsError: the registry cannot be used as configured.
    """
    if format == "avro" or format == "protobuf":
        return FramedParser(format, schema, connect(registry)).parse
    return JsonReader(schema).parse
