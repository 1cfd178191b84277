"""Damages valid messages in the ways in which bytes go wrong, and in which attackers write them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

LENGTHS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
"""Numbers that stand where a length is expected, as they are and as varints."""
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
TOKENS = tuple(b'{ } [ ] , : null true NaN -0 1e999 \\ " \\u0000 \\ud800 {} \xef\xbb\xbf'.split())
NESTS = ((b"[", b"]"), (b'{"a":', b"}"), (b"\x7b", b"\x7c"), (b"\x0a\x02", b""), (b"\x02", b"\0"))
"""What opens and closes one level: JSON, Protobuf's groups and messages, Avro's unions."""
MAX_RANDOM_BYTES = 200
MAX_NESTED_BYTES = 100_000
NESTED = 0.001
"""Share of messages that are nested deeply: they hold most of the bytes, so they are few."""


def mutants(corpus: Sequence[bytes], num: int, keep: int, rng: random.Random) -> list[bytes | None]:
    """Messages, most of them damaged.

    Args:
        corpus: valid messages.
        num: how many to make.
        keep: bytes at the beginning that most damage spares, such as the id of a schema.
        rng: decides everything.
    """
    found: list[bytes | None] = []
    for _ in range(num):
        message = rng.choice(corpus)
        kept = rng.choice((0, keep, keep, keep))
        chance = rng.random()
        if chance < 0.01:
            found.append(rng.choice((None, b"")))
        elif chance < 0.15:
            found.append(message)
        elif chance < 0.25:
            found.append(message[:kept] + rng.randbytes(rng.randrange(MAX_RANDOM_BYTES)))
        elif chance < 0.25 + NESTED:
            found.append(nested(message, kept, rng))
        else:
            body = bytearray(message[kept:])
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                damage(body, rng.choice(corpus), rng)
            found.append(message[:kept] + bytes(body))
    return found


def damage(body: bytearray, other: bytes, rng: random.Random) -> None:
    """Change a message at one place.

    Args:
        body: the message.
        other: another one, to take a piece of.
        rng: decides how.
    """
    at = rng.randrange(len(body) + 1)
    size = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 40)))
    kind = rng.randrange(8)
    if kind == 0:
        del body[at:]
    elif kind == 1 and at < len(body):
        body[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        body[at : at + 1] = bytes([rng.choice(BYTES)])
    elif kind == 3:
        del body[at : at + size]
    elif kind == 4:
        body[at:at] = rng.choice((rng.randbytes(size), rng.choice(TOKENS)))
    elif kind == 5:
        start = rng.randrange(len(other) + 1)
        body[at : at + rng.choice((0, size))] = other[start : start + size]
    elif kind == 6:
        length = varint(rng.choice(LENGTHS))
        body[at : at + rng.choice((0, 1, len(length)))] = length
    else:
        aligned = at // 4 * 4
        form = rng.choice(("<I", "<Q"))
        length = struct.pack(form, rng.choice(LENGTHS) & (2 ** (8 * struct.calcsize(form)) - 1))
        body[aligned : aligned + len(length)] = length


def nested(message: bytes, keep: int, rng: random.Random) -> bytes:
    """A message that opens something very often, and perhaps closes it as often."""
    opening, closing = rng.choice(NESTS)
    depth = min(10 ** rng.randrange(1, 6), MAX_NESTED_BYTES // len(opening + closing))
    inside: bytes = opening * depth + closing * rng.choice((depth, 0))
    at = rng.randrange(keep, len(message) + 1)
    return message[:at] + inside + message[at:]


def varint(number: int) -> bytes:
    """A number in groups of seven bits."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
