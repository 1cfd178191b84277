"""Protobuf messages of one writer's schema to columns, and columns to messages.

The decoder is given a schema of the wanted fields only, with the writer's numbers and types: others
are skipped, so they may be of any type, and need no schema of their own.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import ptars
import pyarrow as pa
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FeatureSet,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from flows.events.schema_resolution import SchemaMismatch, check

NAME = "exfm_event"
TIMESTAMP = timestamp_pb2.Timestamp.DESCRIPTOR.full_name
MAX_GROUPS = 1000
"""A message whose groups may be nested deeper is refused: the decoder follows them on its stack."""
NO_GROUP_BEGINS = bytes(byte for byte in range(256) if byte & 7 != 3)
"""Bytes that no tag of a group's beginning starts with."""
WIRE_VARINT, WIRE_LENGTH, WIRE_GROUP, WIRE_END_GROUP = 0, 2, 3, 4
WIRE_SIZES = {1: 8, 5: 4}
OPTIONS = ptars.PtarsConfig(enum_repr="string", timestamp_unit="ms")


class ProtobufReader:
    """Reads the messages of one type."""

    def __init__(self, text: str, path: Sequence[int], columns: pa.Schema) -> None:
        """Prepare for a writer's schema.

        Args:
            text: the descriptor of its file, serialised, in base64.
            path: position of the message in the file, then in the message that it stands in.
            columns: that are read.

        Raises:
            SchemaMismatch: the text is no descriptor, or has not that message or these columns.
        """
        file = parsed(text)
        self._handler = handler(pruned(file, message_at(file, path), set(columns.names)))
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
        self._handler = handler(file)
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


def parsed(text: str) -> FileDescriptorProto:
    """The descriptor of a registered file.

    Raises:
        SchemaMismatch: it is none.
    """
    try:
        return FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (DecodeError, binascii.Error, ValueError) as error:
        raise SchemaMismatch("no Protobuf descriptor") from error


def message_at(file: FileDescriptorProto, path: Sequence[int]) -> DescriptorProto:
    """The message at a path.

    Raises:
        SchemaMismatch: there is none.
    """
    messages = file.message_type
    found = None
    for number in path:
        if number >= len(messages):
            raise SchemaMismatch(f"no message at {list(path)}")
        found = messages[number]
        messages = found.nested_type
    assert found is not None
    return found


def pruned(
    file: FileDescriptorProto, message: DescriptorProto, names: set[str]
) -> FileDescriptorProto:
    """A file of one message that has some of the fields, each as its writer has it."""
    made = FileDescriptorProto(name=f"{NAME}.proto", package=NAME, syntax="proto3")
    out = made.message_type.add(name="Event")
    for field in message.field:
        if field.name not in names:
            continue
        copy = FieldDescriptorProto(
            name=field.name, number=field.number, type=field.type, label=field.label
        )
        if field.type == field.TYPE_ENUM:
            scope = f"Of_{field.name}"  # values of two enums may have one name
            copy.type_name = f".{NAME}.{scope}.Values"
            nested = made.message_type.add(name=scope).enum_type.add()
            nested.CopyFrom(open_enum(enum_of(file, field)))
        elif field.type_name == f".{TIMESTAMP}":
            copy.type_name = field.type_name
            made.dependency[:] = [timestamp_pb2.DESCRIPTOR.name]
        elif field.type_name:
            raise SchemaMismatch(f"column {field.name!r} is a {field.type_name}")
        out.field.append(copy)
        if has_presence(file, field):
            optional(out, out.field[-1])
    return made


def has_presence(file: FileDescriptorProto, field: FieldDescriptorProto) -> bool:
    """Whether absence differs from the default."""
    if field.label == field.LABEL_REPEATED or field.type == field.TYPE_MESSAGE:
        return False  # the first has none, the second always
    if field.proto3_optional or field.HasField("oneof_index"):
        return True
    if file.syntax != "editions":
        return bool(file.syntax != "proto3")
    own = field.options.features.field_presence or file.options.features.field_presence
    return bool(own != FeatureSet.FieldPresence.IMPLICIT)


def enum_of(file: FileDescriptorProto, field: FieldDescriptorProto) -> EnumDescriptorProto:
    """The enum of a field.

    Raises:
        SchemaMismatch: it stands in another file.
    """
    package = f".{file.package}" if file.package else ""
    found = {f"{package}.{enum.name}": enum for enum in file.enum_type}
    open_ones = [(package, message) for message in file.message_type]
    while open_ones:
        space, message = open_ones.pop()
        inner = f"{space}.{message.name}"
        found.update({f"{inner}.{enum.name}": enum for enum in message.enum_type})
        open_ones += [(inner, nested) for nested in message.nested_type]
    if field.type_name not in found:
        raise SchemaMismatch(f"column {field.name!r}: enum {field.type_name} is in another file")
    return found[field.type_name]


def open_enum(enum: EnumDescriptorProto) -> EnumDescriptorProto:
    """The same values, zero among them and first, as proto3 wants it."""
    made = EnumDescriptorProto(name="Values")
    if enum.options.allow_alias:
        made.options.allow_alias = True
    if all(value.number for value in enum.value):
        made.value.add(name="exfm_unset", number=0)
    made.value.extend(sorted(enum.value, key=lambda value: value.number != 0))
    return made


def of_columns(columns: pa.Schema, name: str) -> FileDescriptorProto:
    """Our schema: columns in order are fields 1, 2, ..., all `optional` or `repeated`."""
    package, _, short = name.rpartition(".")
    file = FileDescriptorProto(name=f"{name}.proto", package=package, syntax="proto3")
    message = file.message_type.add(name=short)
    for number, column in enumerate(columns, start=1):
        repeated = pa.types.is_list(column.type)
        field = message.field.add(
            name=column.name,
            number=number,
            type=of_type(column.type.value_type if repeated else column.type),
            label=FieldDescriptorProto.LABEL_REPEATED
            if repeated
            else FieldDescriptorProto.LABEL_OPTIONAL,
        )
        if not repeated:
            optional(message, field)
    return file


def of_type(kind: pa.DataType) -> FieldDescriptorProto.Type.ValueType:
    """The Protobuf type of an event's column."""
    if pa.types.is_string(kind):
        return FieldDescriptorProto.TYPE_STRING
    wide = kind.bit_width == 64
    if pa.types.is_integer(kind):
        return FieldDescriptorProto.TYPE_INT64 if wide else FieldDescriptorProto.TYPE_INT32
    return FieldDescriptorProto.TYPE_DOUBLE if wide else FieldDescriptorProto.TYPE_FLOAT


def optional(message: DescriptorProto, field: FieldDescriptorProto) -> None:
    """Make absence of a field differ from its default."""
    field.proto3_optional = True
    field.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=f"_{field.name}")


def handler(file: FileDescriptorProto) -> Any:
    """The decoder and encoder of a file's first message."""
    pool = DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    try:
        pool.AddSerializedFile(file.SerializeToString())
        found: Descriptor = pool.FindMessageTypeByName(
            ".".join(filter(None, (file.package, file.message_type[0].name)))
        )
    except (TypeError, KeyError) as error:
        raise SchemaMismatch(f"no usable Protobuf descriptor: {error}") from error
    return ptars.HandlerPool([found.file], OPTIONS).get_for_message(found)
