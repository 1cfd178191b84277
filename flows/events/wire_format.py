"""What stands before an event whose schema a Schema Registry knows.

A zero byte, four bytes of the schema's id, big-endian; in Protobuf also the path to the message
within its file: how many numbers, then the numbers, as zigzag varints, or one zero for the first.
"""

from __future__ import annotations

import struct

MAGIC = 0
LENGTH = 5
MAX_PATH = 32
"""Messages nested deeper are not looked for."""
FIRST_MESSAGE = b"\0"
"""The path of the first message of a file."""


def prefix(schema_id: int) -> bytes:
    """The bytes before an Avro event."""
    return struct.pack(">bI", MAGIC, schema_id)


def schema_id(value: bytes) -> int:
    """The id in an event's prefix."""
    return int.from_bytes(value[1:LENGTH], "big")


def is_framed(value: bytes) -> bool:
    """Whether an event begins as it must."""
    return len(value) >= LENGTH and value[0] == MAGIC


def path(value: bytes) -> tuple[tuple[int, ...], int]:
    """The path to a Protobuf event's message, and where its own bytes begin.

    Raises:
        ValueError: no path stands there.
    """
    if value[LENGTH : LENGTH + 1] == FIRST_MESSAGE:
        return (0,), LENGTH + 1
    count, at = zigzag(value, LENGTH)
    if not 0 < count <= MAX_PATH:
        raise ValueError(f"a path of {count} numbers, allowed are 1 to {MAX_PATH}")
    numbers = []
    for _ in range(count):
        number, at = zigzag(value, at)
        numbers.append(number)
    if min(numbers) < 0:
        raise ValueError(f"a negative number in the path {numbers}")
    return tuple(numbers), at


def zigzag(value: bytes, at: int) -> tuple[int, int]:
    """A varint of at most five bytes, and where it ends.

    Raises:
        ValueError: none ends there.
    """
    found = 0
    for place, byte in enumerate(value[at : at + 5]):
        found |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at + place + 1
    raise ValueError("no varint")
