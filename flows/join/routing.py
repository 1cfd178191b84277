"""Keys of the shards, chosen so that workers get equally many.

Bytewax gives a key to the worker `hash(key) % workers`, and the plain numbers of four shards all go
to one of two workers. A shard's key is its number and a suffix that makes the rest of the hash by
`EVEN` that of the number: over any divisor of `EVEN`, the shards are dealt out in turn. Were
Bytewax to hash otherwise, they would be dealt out unevenly, and nothing else would change.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012; Rust's
`DefaultHasher` is SipHash-1-3 with zeros for keys.
"""

from __future__ import annotations

from functools import cache
from itertools import count

from flows.settings import SettingsError

EVEN = 24
"""Workers that get equally many: 1, 2, 3, 4, 6, 8, 12 and 24."""
START = b"somepseudorandomlygeneratedbytes"
BITS = 64
WORD = (1 << BITS) - 1


@cache
def shard_key(shard: int) -> str:
    """Key of a shard, the same for ever."""
    keys = (f"{shard}.{n}" for n in count())
    return next(key for key in keys if siphash(key) % EVEN == shard % EVEN)


def insist_on_shards(shards: int, workers: int) -> None:
    """Check that each worker of the join has a shard.

    What a process reads ahead is bounded by what its shards have closed (flows/join/read_ahead.py):
    one without a shard would read its partitions to the end, for others to keep.

    Raises:
        SettingsError: one has none; the message has numbers that would do.
    """
    if all_busy(shards, workers):
        return
    fewer = next(n for n in range(min(workers, shards + 1) - 1, 0, -1) if all_busy(shards, n))
    more = next((n for n in range(workers + 1, shards + 1) if all_busy(shards, n)), None)
    numbers = f"{fewer}" if more is None else f"{fewer} or {more}"
    raise SettingsError(
        f"das.shards = {shards} leave some of {workers} workers (threads of all processes) of the "
        f"join without a shard: start {numbers}"
    )


def all_busy(shards: int, workers: int) -> bool:
    """Whether each of so many workers has a shard."""
    return len({siphash(shard_key(shard)) % workers for shard in range(shards)}) == workers


def shard_of_key(key: str) -> int:
    """The shard whose key it is."""
    return int(key.partition(".")[0])


def siphash(key: str) -> int:
    """SipHash-1-3 of a text as Rust hashes one: its UTF-8, and 255 behind it."""
    data = key.encode() + b"\xff"
    state = [int.from_bytes(START[i : i + 8], "big") for i in range(0, len(START), 8)]
    whole = len(data) // 8 * 8
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, whole, 8)]
    words.append(len(data) % 256 << 56 | int.from_bytes(data[whole:], "little"))
    for word in words:
        state[3] ^= word
        state = mixed(*state)
        state[0] ^= word
    state[2] ^= 0xFF
    for _ in range(3):
        state = mixed(*state)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def mixed(a: int, b: int, c: int, d: int) -> list[int]:
    """One round of SipHash."""
    a = a + b & WORD
    b = rotated(b, 13) ^ a
    a = rotated(a, 32)
    c = c + d & WORD
    d = rotated(d, 16) ^ c
    a = a + d & WORD
    d = rotated(d, 21) ^ a
    c = c + b & WORD
    b = rotated(b, 17) ^ c
    return [a, b, rotated(c, 32), d]


def rotated(word: int, by: int) -> int:
    """Bits moved to the left, in a circle."""
    return (word << by | word >> BITS - by) & WORD
