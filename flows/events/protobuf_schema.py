"""Protobuf schemas: those of writers, cut down to the wanted columns, and ours.

A registry writes descriptors as it likes: Confluent's leaves out whether a named type is an enum or
a message, and gives names as they stand in the text. So Protobuf itself looks them up: in a pool of
the writer's file and those that it builds upon, all without fields but for the wanted ones. Others
may be of any type, known or not.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, EncodeError

from flows.events.schema_resolution import SchemaMismatch

NAME = "exfm_event"
ENUM = "ExfmValues"
"""Of every enum: it shares a scope with its values, which have other names."""
TIMESTAMP = timestamp_pb2.Timestamp.DESCRIPTOR.full_name


def writers_message(
    text: str, references: Iterable[tuple[str, str]], path: Sequence[int], names: set[str]
) -> Descriptor:
    """A writer's message, of its fields those of some names.

    Args:
        text: the descriptor of its file, serialised, in base64.
        references: names and texts of what the file builds upon, each behind those it needs.
        path: position of the message in the file, then in the message that it stands in.
        names: of fields.

    Raises:
        SchemaMismatch: the text is no descriptor, or the message or a type of its is not there.
    """
    file = parsed(text)
    ours = bare_file(file, f"{NAME}_writer.proto")
    scope = [file.package] if file.package else []
    found, made = file.message_type, ours.message_type
    for number in path:
        if number >= len(found):
            raise SchemaMismatch(f"no message at {list(path)}")
        theirs, bare = found[number], made[number]
        scope.append(bare.name)
        found, made = theirs.nested_type, bare.nested_type
    add_fields(bare, (field for field in theirs.field if field.name in names))
    return message_of([*bare_files(references), ours], ".".join(scope))


def bare_files(references: Iterable[tuple[str, str]]) -> Iterator[FileDescriptorProto]:
    """What a file builds upon; a text that is no descriptor harms only fields of its types."""
    for name, text in references:
        try:
            yield bare_file(parsed(text), name)
        except SchemaMismatch:
            continue


def parsed(text: str) -> FileDescriptorProto:
    """The descriptor of a registered file.

    Raises:
        SchemaMismatch: it is none.
    """
    try:
        return FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (DecodeError, binascii.Error, ValueError) as error:
        raise SchemaMismatch("no Protobuf descriptor") from error


def bare_file(file: FileDescriptorProto, name: str) -> FileDescriptorProto:
    """Its enums, and its messages without fields."""
    return FileDescriptorProto(
        name=name,
        package=file.package,
        syntax=file.syntax or "proto2",
        edition=file.edition if file.syntax == "editions" else None,
        options=file.options,
        enum_type=file.enum_type,
        message_type=map(bare_message, file.message_type),
    )


def bare_message(message: DescriptorProto) -> DescriptorProto:
    """The same of a message."""
    return DescriptorProto(
        name=message.name,
        enum_type=message.enum_type,
        nested_type=map(bare_message, message.nested_type),
    )


def add_fields(message: DescriptorProto, fields: Iterable[FieldDescriptorProto]) -> None:
    """Copy fields, each that shares a oneof to one of its own."""
    for field in fields:
        copy = message.field.add()
        copy.CopyFrom(field)
        copy.ClearField("default_value")  # what is absent is null
        if field.proto3_optional or field.HasField("oneof_index"):
            set_oneof(message, copy)


def set_oneof(message: DescriptorProto, field: FieldDescriptorProto) -> None:
    """Put a field into a oneof of its own."""
    field.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=f"_{field.name}")


def message_of(files: Sequence[FileDescriptorProto], full_name: str) -> Descriptor:
    """A message of some files, each of which may name types of those before it.

    Raises:
        SchemaMismatch: the files are not sound, or have no such message.
    """
    pool, names = DescriptorPool(), [timestamp_pb2.DESCRIPTOR.name]
    try:
        pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
        for file in files:
            if file.name in names:
                continue
            linked = FileDescriptorProto()
            linked.CopyFrom(file)
            linked.dependency[:] = names
            pool.AddSerializedFile(linked.SerializeToString())
            names.append(file.name)
        return pool.FindMessageTypeByName(full_name)
    except (TypeError, KeyError, EncodeError) as error:
        raise SchemaMismatch(f"no usable Protobuf descriptor: {error}") from error


def decoders_message(message: Descriptor) -> Descriptor:
    """The message that the decoder is given: the same fields, in a file of proto3.

    It knows neither editions nor required fields. Enums stand in a file of proto2, where they need
    no zero; the decoder writes the number of a value that they do not have.

    Raises:
        SchemaMismatch: a field is a message other than a time.
    """
    enums = FileDescriptorProto(name=f"{NAME}_enums.proto", package=NAME, syntax="proto2")
    file = FileDescriptorProto(name=f"{NAME}.proto", package=NAME, syntax="proto3")
    made = file.message_type.add(name="Event")
    label = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    for field in message.fields:
        copy = made.field.add(
            name=field.name,
            number=field.number,
            type=FieldDescriptorProto.Type.ValueType(field.type),
            label=label[field.is_repeated],
        )
        if field.message_type is not None:
            copy.type_name = name_of_time(field)
            continue  # absence of a message is always told
        if field.enum_type is not None:
            copy.type_name = copied_enum(enums, field)
        if field.has_presence:
            optional(made, copy)
    return message_of([enums, file], f"{NAME}.{made.name}")


def name_of_time(field: FieldDescriptor) -> str:
    """The type of a field that is a time.

    Raises:
        SchemaMismatch: it is another message.
    """
    name = field.message_type.full_name
    if name != TIMESTAMP or field.type != FieldDescriptor.TYPE_MESSAGE:
        raise SchemaMismatch(f"column {field.name!r} is a {name}")
    return f".{name}"


def copied_enum(file: FileDescriptorProto, field: FieldDescriptor) -> str:
    """The type of a copy of a field's enum, in a scope of its own, as two may name values alike."""
    scope = file.message_type.add(name=f"Of_{field.name}")
    copy = scope.enum_type.add(name=ENUM)
    copy.options.allow_alias = True
    for value in field.enum_type.values:
        copy.value.add(name=value.name, number=value.number)
    return f".{file.package}.{scope.name}.{ENUM}"


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
    set_oneof(message, field)
