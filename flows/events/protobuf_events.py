"""Protobuf messages of one writer's schema to columns, and columns to messages.

The decoder is given a schema of the wanted fields only, with the writer's numbers and types: others
are skipped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import ptars
import pyarrow as pa
from google.protobuf.descriptor import Descriptor

from flows.events.protobuf_schema import (
    decoders_message,
    message_of,
    of_columns,
    writers_message,
)
from flows.events.schema_resolution import check

MAX_GROUPS = 1000
"""A message whose groups may be nested deeper is refused: the decoder follows them on its stack."""
NO_GROUP_BEGINS = bytes(byte for byte in range(256) if byte & 7 != 3)
"""Bytes that no tag of a group's beginning starts with."""
WIRE_VARINT, WIRE_LENGTH, WIRE_GROUP, WIRE_END_GROUP = 0, 2, 3, 4
WIRE_SIZES = {1: 8, 5: 4}
OPTIONS = ptars.PtarsConfig(enum_repr="string", timestamp_unit="ms")


class ProtobufReader:
    """Reads the messages of one type."""

    def __init__(
        self,
        text: str,
        references: Sequence[tuple[str, str]],
        path: Sequence[int],
        columns: pa.Schema,
    ) -> None:
        """Prepare for a writer's schema.

        Args:
            text: the descriptor of its file, serialised, in base64.
            references: names and texts of what the file builds upon, each behind those it needs.
            path: position of the message in the file, then in the message that it stands in.
            columns: that are read.

        Raises:
            SchemaMismatch: the text is no descriptor, or has not that message or these columns.
        """
        message = writers_message(text, references, path, set(columns.names))
        self._handler = handler(decoders_message(message))
        check(self._handler.schema(), columns)

    def read(self, messages: Sequence[bytes]) -> pa.RecordBatch:
        """A row for each message.

        Raises:
            ValueError: one of them is damaged.
        """
        if any(len(message) > MAX_GROUPS and nests_deeply(message) for message in messages):
            raise ValueError(f"groups are nested deeper than {MAX_GROUPS}")
        batch: pa.RecordBatch = self._handler.list_to_record_batch(list(messages))
        return batch

    decode = read


def nests_deeply(message: bytes) -> bool:
    """Whether a message may hold groups nested deeper than MAX_GROUPS.

    Exactly, as long as it has the form of a message; one that has not counts as nested.
    """
    if len(message.translate(None, NO_GROUP_BEGINS)) <= MAX_GROUPS:
        return False
    at = depth = 0
    try:
        while at < len(message) and 0 <= depth <= MAX_GROUPS:
            tag, at = varint(message, at)
            kind = tag & 7
            depth += (kind == WIRE_GROUP) - (kind == WIRE_END_GROUP)
            at = behind(message, at, kind)
    except ValueError:
        return True
    return depth != 0 or at != len(message)


def behind(message: bytes, at: int, kind: int) -> int:
    """Where the content of a field ends; a group has none of its own."""
    if kind in (WIRE_GROUP, WIRE_END_GROUP):
        return at
    if kind in WIRE_SIZES:
        return at + WIRE_SIZES[kind]
    found, at = varint(message, at)
    if kind == WIRE_VARINT:
        return at
    if kind == WIRE_LENGTH:
        return at + found
    raise ValueError(f"wire type {kind}")


def varint(message: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends.

    Raises:
        ValueError: none ends there.
    """
    found = 0
    for place, byte in enumerate(message[at : at + 10]):
        found |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return found, at + place + 1
    raise ValueError("no varint")


class ProtobufWriter:
    """Writes messages of our own schema."""

    def __init__(self, columns: pa.Schema, name: str) -> None:
        """Write columns as messages of a full name."""
        file = of_columns(columns, name)
        self._handler = handler(message_of([file], name))
        self._wire = self._handler.schema()
        self.text = base64.b64encode(file.SerializeToString()).decode()

    def write(self, table: pa.Table) -> list[bytes]:
        """A message for each row; a list that is null becomes an empty one.

        Args:
            table: in the columns of the schema, none of the required ones holding a null.

        Raises:
            ValueError: a list holds a null, for which Protobuf has no bytes.
        """
        arrays = []
        for field in self._wire:
            array = table[field.name].combine_chunks()
            if pa.types.is_list(field.type):
                if array.flatten().null_count:
                    raise ValueError(f"column {field.name!r}: a list holds a null, not Protobuf's")
                array = array.fill_null(pa.scalar([], array.type))
            arrays.append(array.cast(field.type))
        batch = pa.record_batch(arrays, schema=self._wire)
        written: list[bytes] = self._handler.record_batch_to_array(batch).to_pylist()
        return written


def handler(message: Descriptor) -> Any:
    """The decoder and encoder of a message."""
    return ptars.HandlerPool([message.file], OPTIONS).get_for_message(message)
