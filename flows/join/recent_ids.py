"""When records of an id came: 128-bit hashes in sorted runs, behind a filter of bits.

Two different ids are taken for one if both hashes agree; among a billion ids of one shard the odds
are 1 in 10^21. An id that was never seen mostly costs one look at the filter.

Source of the filter: Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", Comm.
ACM 13 (7), 1970.
Legend: N = ids asked for, R = rows of a run, M = matches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import polars as pl
import polars_hash
import pyarrow as pa

from flows.join.segment import Times, times
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState

RECENT = pa.schema([("high", pa.uint64()), ("low", pa.uint64()), ("ts_ms", pa.int64())])
BITS_AN_ID = 16
"""At least, so that at most one new id in 60 passes the filter."""
FAR = np.iinfo(np.int64).max
MIN_BITS = 1 << 13
WORD_BITS = 64
"""A value's bits stand in one word: one look at memory finds both."""
ONE, LAST_IN_WORD = np.uint64(1), np.uint64(WORD_BITS - 1)
FIRST_BIT, SECOND_BIT = np.uint64(58), np.uint64(52)
"""Where a hash holds the numbers of its two bits; the number of its word stands at its end."""

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


class RecentIds:
    """Ids and the event times of their records."""

    def __init__(self, folder: SegmentFolder, kind: str) -> None:
        """Begin with none.

        Args:
            folder: of the shard.
            kind: name of the files.
        """
        self._store = SegmentStore(folder, kind, RECENT, order="high")
        self._filter = Filter(0)

    def distance(self, high_N: Hashes, low_N: Hashes, ts_N: Times) -> Times:
        """Milliseconds between each time and the nearest record of its id, shape [N].

        FAR where there is none. Ids in the order of `high_N` are found fastest.
        """
        nearest_N = np.full(len(high_N), FAR, dtype=np.int64)
        for asked_M, found_M in self._matches(high_N, low_N):
            np.minimum.at(nearest_N, asked_M, np.abs(found_M - ts_N[asked_M]))
        return nearest_N

    def times_of(self, ids: pa.Array | pa.ChunkedArray) -> Times:
        """Event times of all records of some ids, ascending, each once."""
        found = [found_M for _, found_M in self._matches(*hashes(ids))]
        return np.unique(np.concatenate([*found, np.empty(0, np.int64)]))

    def _matches(self, high_N: Hashes, low_N: Hashes) -> Iterator[tuple[Times, Times]]:
        """Of each run: positions of ids, and the event time of a record of each."""
        maybe = np.flatnonzero(self._filter.might_hold(high_N))
        for run in self._store.tables() if len(maybe) else ():
            asked_M, row_M = matches(run, high_N[maybe], low_N[maybe])
            yield maybe[asked_M], times(run)[row_M]

    def add(self, high_N: Hashes, low_N: Hashes, ts_N: Times) -> None:
        """Remember admitted records."""
        self._store.append(pa.table([high_N, low_N, ts_N], schema=RECENT))
        if self._filter.has_room(len(high_N)):
            self._filter.add(high_N)
        else:
            self._fill()

    def forget(self, before_ms: int) -> None:
        """Forget records before `before_ms`."""
        self._store.forget(before_ms)

    def save(self) -> StoreState:
        """State in plain data."""
        return self._store.save()

    def restore(self, state: StoreState) -> None:
        """Go on from what `save` returned."""
        self._store.restore(state)
        self._fill()

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._store.num_bytes

    def _fill(self) -> None:
        self._filter = Filter(sum(run.num_rows for run in self._store.tables()))
        for run in self._store.tables():
            self._filter.add(column(run, "high"))


class Filter:
    """Says of most values that were not added that they were not."""

    def __init__(self, num: int) -> None:
        """Make room for twice as many values as `num`."""
        num_bits = max(MIN_BITS, 1 << (2 * BITS_AN_ID * num - 1).bit_length()) if num else MIN_BITS
        self._words = np.zeros(num_bits // WORD_BITS, dtype=np.uint64)
        self._num = 0

    def has_room(self, num: int) -> bool:
        """Whether so many more values leave BITS_AN_ID bits for each."""
        return (self._num + num) * BITS_AN_ID <= WORD_BITS * len(self._words)

    def add(self, hash_N: Hashes) -> None:
        """Add well mixed values."""
        self._num += len(hash_N)
        word_N, bits_N = self._places(hash_N)
        while len(word_N):
            self._words[word_N] |= bits_N  # of several in one word the last is kept
            lost_N = self._words[word_N] & bits_N != bits_N
            word_N, bits_N = word_N[lost_N], bits_N[lost_N]

    def might_hold(self, hash_N: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """True for each value that was added, shape [N]."""
        word_N, bits_N = self._places(hash_N)
        return np.asarray(self._words[word_N] & bits_N == bits_N)

    def _places(self, hash_N: Hashes) -> tuple[Times, Hashes]:
        """Word of each value, and its bits in it, each of shape [N]."""
        word_N = (hash_N & np.uint64(len(self._words) - 1)).astype(np.int64)
        bits_N = ONE << (hash_N >> FIRST_BIT) | ONE << (hash_N >> SECOND_BIT & LAST_IN_WORD)
        return word_N, bits_N


def hashes(ids: pa.Array | pa.ChunkedArray) -> tuple[Hashes, Hashes]:
    """Two independent hashes of each id, each of shape [N]."""
    ident = polars_hash.col("id").nchash
    found = pl.DataFrame({"id": pl.from_arrow(ids)}).select(
        high=ident.xxh3_64(), low=ident.xxhash64()
    )
    return found["high"].to_numpy(), found["low"].to_numpy()


def matches(run: pa.Table, high_N: Hashes, low_N: Hashes) -> tuple[Times, Times]:
    """Positions of ids, and the row of a record of each in a run, both of shape [M]."""
    high_R, low_R = column(run, "high"), column(run, "low")
    found: list[tuple[Times, Times]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    asked = np.arange(len(high_N))
    at = np.searchsorted(high_R, high_N)
    while len(asked):
        same = at < len(high_R)
        same[same] = high_R[at[same]] == high_N[asked[same]]
        asked, at = asked[same], at[same]
        is_it = low_R[at] == low_N[asked]
        found.append((asked[is_it], at[is_it]))
        at = at + 1
    asked_M, row_M = (np.concatenate(part) for part in zip(*found, strict=True))
    return asked_M, row_M


def column(run: pa.Table, name: str) -> Hashes:
    """A column of hashes, shape [R]."""
    return cast(Hashes, run.column(name).to_numpy())
