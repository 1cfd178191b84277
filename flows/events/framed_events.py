"""Avro and Protobuf messages, each of a schema that the registry knows, to columns.

Messages of one schema are read by one call. If that fails, the bad ones are found by halving the
group; as a decoder reads each message from its own bytes, none depends on its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from flows.events import wire_format
from flows.events.arrow_events import nullable
from flows.events.avro_events import AvroReader, LongRecords
from flows.events.protobuf_events import ProtobufReader
from flows.events.schema_registry import Registry
from flows.events.schema_resolution import SchemaMismatch, column

logger = logging.getLogger(__name__)

READERS = 4096
"""Readers kept; damaged messages may name any schema."""
Framed = Literal["avro", "protobuf"]
UNKNOWN = "unknown_schema"
KINDS: dict[Framed, str] = {"avro": "AVRO", "protobuf": "PROTOBUF"}


class Reader(Protocol):
    """Reads the messages of one writer's schema."""

    def read(self, messages: Sequence[bytes], /) -> pa.RecordBatch:
        """A row for each message; ValueError if one of them is damaged."""

    def decode(self, messages: Sequence[bytes], /) -> pa.RecordBatch:
        """The same with fewer checks, so quicker."""


class FramedParser:
    """Reads the messages of one topic, whatever schemas they were written with."""

    def __init__(self, format: Framed, columns: pa.Schema, registry: Registry) -> None:
        """Read columns of messages.

        Args:
            format: of the messages.
            columns: those that are read; the ones not nullable must be in every writer's schema.
            registry: that knows the schemas.
        """
        self._format = format
        self._columns = columns
        self._nullable = nullable(columns)
        self._registry = registry
        self._readers: dict[bytes, Reader | str] = {}

    def parse(self, values: Sequence[bytes | None]) -> tuple[pa.Table, dict[int, str]]:
        """Columns of the good messages, in order.

        Returns:
            A row for each accepted message, and the reason for each other position of `values`.

        Raises:
            RegistryError: the registry cannot be asked for a schema.
        """
        bad: dict[int, str] = {}
        kept: list[int] = []
        tables = [self._nullable.empty_table()]
        for prefix, places in self._groups(values, bad).items():
            reader = self._reader(prefix)
            if isinstance(reader, str):
                bad.update(dict.fromkeys(places, reader))
                continue
            length = len(prefix)
            messages = [value[length:] for i in places if (value := values[i])]
            for good, table in self._read(reader, messages, places, bad):
                kept += good
                tables.append(table)
        table = pa.concat_tables(tables)
        order = np.argsort(kept)
        if np.any(order[1:] < order[:-1]):
            table = table.take(pa.array(order, pa.int64()))
        return table, dict(sorted(bad.items()))

    def _groups(
        self, values: Sequence[bytes | None], bad: dict[int, str]
    ) -> dict[bytes, Sequence[int]]:
        """Positions of messages by what stands before their own bytes."""
        usual = wire_format.LENGTH + (self._format == "protobuf")
        heads = {value[:usual] if value else b"" for value in values}
        if len(heads) == 1:
            (head,) = heads
            try:
                if wire_format.is_framed(head) and self._length(head) == usual:
                    return {head: range(len(values))}
            except ValueError:
                pass  # a path of another message: looked at one by one
        groups: dict[bytes, list[int]] = {}
        for place, value in enumerate(values):
            try:
                if not value:
                    bad[place] = "empty"
                elif not wire_format.is_framed(value):
                    bad[place] = "not_framed"
                else:
                    groups.setdefault(value[: self._length(value)], []).append(place)
            except ValueError:
                bad[place] = "not_framed"
        return dict(groups)

    def _length(self, value: bytes) -> int:
        """Of what stands before a message's own bytes; ValueError if it is damaged."""
        return wire_format.LENGTH if self._format == "avro" else wire_format.path(value)[1]

    def _reader(self, prefix: bytes) -> Reader | str:
        """The reader of a schema, or why its messages are rejected."""
        if prefix not in self._readers:
            made = self._made(prefix)
            if made == UNKNOWN:
                return made  # not kept: the registry may come to know it
            if len(self._readers) >= READERS:
                self._readers.clear()
            self._readers[prefix] = made
        return self._readers[prefix]

    def _made(self, prefix: bytes) -> Reader | str:
        number = wire_format.schema_id(prefix)
        schema = self._registry.schema(number)
        if schema is None:
            return UNKNOWN
        try:
            if schema.kind != KINDS[self._format]:
                raise SchemaMismatch(f"it is {schema.kind}, not {KINDS[self._format]}")
            if self._format == "avro":
                texts = [text for _, text in schema.references]
                return AvroReader(schema.text, texts, self._columns)
            path = wire_format.path(prefix)[0]
            return ProtobufReader(schema.text, schema.references, path, self._columns)
        except BaseException as error:
            _raise_unless_data_is_bad(error)  # SchemaMismatch, UnusableSchema, or a panic
            logger.warning("every event of schema %d is rejected: %s", number, error)
            return "schema_mismatch"

    def _read(
        self, reader: Reader, messages: list[bytes], places: Sequence[int], bad: dict[int, str]
    ) -> list[tuple[Sequence[int], pa.Table]]:
        """Positions and rows of the good ones among some messages of one schema."""
        reason, damaged = f"not_{self._format}", list[int]()
        try:
            batch = reader.read(messages)
            reason = "wrong_type"
            arrays = [column(batch, field) for field in self._nullable]
            return [(places, pa.table(arrays, schema=self._nullable))]
        except LongRecords as error:
            damaged = error.rows
        except BaseException as error:
            _raise_unless_data_is_bad(error)
        if len(messages) == 1:
            bad[places[0]] = reason
            return []
        damaged = damaged or _damaged(reader, messages)
        bad.update({places[i]: f"not_{self._format}" for i in damaged})
        rest = sorted(set(range(len(messages))) - set(damaged))
        pieces = [rest] if damaged else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
        return [
            found
            for piece in pieces
            if piece
            for found in self._read(
                reader, [messages[i] for i in piece], [places[i] for i in piece], bad
            )
        ]


def _damaged(reader: Reader, messages: Sequence[bytes]) -> list[int]:
    """Positions of the messages that their decoder refuses, by halving."""
    found = []
    open_ones = [(0, len(messages))] if messages else []
    while open_ones:
        start, end = open_ones.pop()
        try:
            reader.decode(messages[start:end])
        except BaseException as error:
            _raise_unless_data_is_bad(error)
            middle = (start + end) // 2
            if middle == start:
                found.append(start)
            else:
                open_ones += [(start, middle), (middle, end)]
    return found


def _raise_unless_data_is_bad(error: BaseException) -> None:
    """Raise it again, unless a decoder raised it; one written in Rust may also panic."""
    is_panic = type(error).__module__ == "pyo3_runtime"
    if not (is_panic or isinstance(error, ValueError | pa.ArrowException)):
        raise error
