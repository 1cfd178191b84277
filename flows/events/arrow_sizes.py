"""How large an Arrow IPC message becomes, known before anything is unpacked.

A few bytes may stand for gigabytes: compressed buffers say how long they were, a dictionary or a
view may name the same long text in each row, and nulls of no type have no bytes at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCHES = ("record batch", "dictionary")
HEADER, DICTIONARY_DATA = 2, 1
BUFFERS, COMPRESSION = 2, 3
"""Positions of fields in the tables of Arrow's Message.fbs."""
LENGTH = struct.Struct("<q")
NULL_BYTES = 8
"""Of a null in a column of ours."""


def unpacked_bytes(message: bytes) -> int:
    """Size of all buffers of a stream once they are unpacked.

    Raises:
        pa.ArrowException: the bytes are no stream of messages.
        struct.error: a buffer lies outside its message.
    """
    total = len(message)
    for part in pa.ipc.MessageReader.open_stream(message):
        if part.type in BATCHES:
            total += sum(declared_lengths(part))
    return total


def declared_lengths(part: pa.ipc.Message) -> Iterator[int]:
    """What the compressed buffers of a batch say they were; none if they are not compressed."""
    metadata = bytes(part.metadata)
    batch = table_at(metadata, pointer(metadata, 0), HEADER)
    if part.type == "dictionary":
        batch = table_at(metadata, batch, DICTIONARY_DATA)
    buffers = field(metadata, batch, BUFFERS)
    if buffers is None or field(metadata, batch, COMPRESSION) is None:
        return
    body, vector = part.body, pointer(metadata, buffers)
    (num,) = struct.unpack_from("<I", metadata, vector)
    for place, length in struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * num]):
        if length:
            yield max(0, LENGTH.unpack_from(body, place)[0])  # -1: as it stands


def table_at(metadata: bytes, table: int, number: int) -> int:
    """Where the table in a field of a table begins."""
    place = field(metadata, table, number)
    if place is None:
        raise struct.error(f"field {number} is absent")
    return pointer(metadata, place)


def field(metadata: bytes, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffers table stands; None: it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, vtable)
    entry = 4 + 2 * number
    if entry >= size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + entry)
    return table + offset if offset else None


def pointer(metadata: bytes, place: int) -> int:
    """Where the offset at a place leads."""
    return place + int(struct.unpack_from("<I", metadata, place)[0])


def expanded_bytes(column: pa.ChunkedArray) -> int:
    """Size of the values of a column, each written out."""
    return sum(map(written_out, column.chunks))


def written_out(array: pa.Array) -> int:
    """The same of an array; of types whose values stand there once, 0."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = text_lengths(array.dictionary)
        if lengths is None:
            return len(array) * int(array.dictionary.nbytes)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_string_view(kind):
        return int(pc.sum(text_lengths(array)).as_py() or 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return written_out(array.flatten())
    if pa.types.is_null(kind):
        return NULL_BYTES * len(array)
    return 0


def text_lengths(array: pa.Array) -> pa.Array | None:
    """Bytes of each string; None: the array holds no strings."""
    if pa.types.is_string_view(array.type):
        views = array.buffers()[1]
        if views is None:
            return pa.array([], pa.int32())
        lengths_N4 = np.frombuffer(views, dtype=np.int32).reshape(-1, 4)
        lengths_N = lengths_N4[array.offset : array.offset + len(array), 0]
        return pa.array(lengths_N, mask=array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return pc.binary_length(array)
    return None
