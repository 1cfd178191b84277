"""Avro and Protobuf messages, each of a schema that the registry knows, to columns.

Messages of one schema are read by one call. If that fails, the bad ones are found by halving; as a
decoder reads each message from its own bytes, none depends on its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from flows import wire_format
from flows.arrow_events import nullable
from flows.avro_events import AvroReader
from flows.avro_schema import UnusableSchema
from flows.protobuf_events import ProtobufReader
from flows.schema_registry import Registry
from flows.schema_resolution import SchemaMismatch, column

logger = logging.getLogger(__name__)

PARTS = 8
"""Pieces that a group with a bad message is cut into."""
READERS = 4096
"""Readers kept; damaged messages may name any schema."""
Framed = Literal["avro", "protobuf"]
KINDS: dict[Framed, str] = {"avro": "AVRO", "protobuf": "PROTOBUF"}


class Reader(Protocol):
    """Reads the messages of one writer's schema."""

    def read(self, messages: Sequence[bytes], /) -> pa.RecordBatch:
        """A row for each message; ValueError if one of them is damaged."""


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
            messages = [(values[place] or b"")[len(prefix) :] for place in places]
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
    ) -> dict[bytes, list[int]]:
        """Positions of messages by what stands before their own bytes."""
        length: Callable[[bytes], int]
        length = _length if self._format == "avro" else _length_with_path
        groups: dict[bytes, list[int]] = {}
        for place, value in enumerate(values):
            if not value:
                bad[place] = "empty"
            elif not wire_format.is_framed(value):
                bad[place] = "not_framed"
            else:
                try:
                    groups.setdefault(value[: length(value)], []).append(place)
                except ValueError:
                    bad[place] = "not_framed"
        return groups

    def _reader(self, prefix: bytes) -> Reader | str:
        """The reader of a schema, or why its messages are rejected."""
        if prefix not in self._readers:
            if len(self._readers) >= READERS:
                self._readers.clear()
            self._readers[prefix] = self._made(prefix)
        return self._readers[prefix]

    def _made(self, prefix: bytes) -> Reader | str:
        number = wire_format.schema_id(prefix)
        schema = self._registry.schema(number)
        if schema is None:
            return "unknown_schema"
        try:
            if schema.kind != KINDS[self._format]:
                raise SchemaMismatch(f"it is {schema.kind}, not {KINDS[self._format]}")
            if self._format == "avro":
                return AvroReader(schema.text, schema.references, self._columns)
            return ProtobufReader(schema.text, wire_format.path(prefix)[0], self._columns)
        except (UnusableSchema, SchemaMismatch) as error:
            logger.warning("every event of schema %d is rejected: %s", number, error)
            return "schema_mismatch"

    def _read(
        self, reader: Reader, messages: list[bytes], places: list[int], bad: dict[int, str]
    ) -> list[tuple[list[int], pa.Table]]:
        """Positions and rows of the good messages among some of one schema."""
        reason = f"not_{self._format}"
        try:
            batch = reader.read(messages)
            reason = "wrong_type"
            arrays = [column(batch, field) for field in self._nullable]
            return [(places, pa.table(arrays, schema=self._nullable))]
        except BaseException as error:
            if not (isinstance(error, ValueError | pa.ArrowException) or _is_panic(error)):
                raise
        if len(messages) == 1:
            bad[places[0]] = reason
            return []
        step = -(-len(messages) // PARTS)
        return [
            part
            for start in range(0, len(messages), step)
            for part in self._read(
                reader, messages[start : start + step], places[start : start + step], bad
            )
        ]


def _length(_: bytes) -> int:
    return wire_format.LENGTH


def _length_with_path(value: bytes) -> int:
    return wire_format.path(value)[1]


def _is_panic(error: BaseException) -> bool:
    """Whether a decoder written in Rust gave up; it stays usable, but says so in its own way."""
    return type(error).__module__ == "pyo3_runtime"
