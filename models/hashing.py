"""Ids to 64-bit hashes that are the same on every machine, for ever. No torch.

Legend: N = ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

NULL_HASH = np.uint64(0x9AE16A3B2F90404F)
"""Hash of a missing id: it has a row of its own, like any other id."""

COMBINE = np.uint64(0x9DDFEA08EB382D69)


def splitmix64(values_N: Hashes) -> Hashes:
    """Well mixed bits of each value; a bijection of 64-bit integers.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z_N = values_N + np.uint64(0x9E3779B97F4A7C15)
    z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z_N ^ (z_N >> np.uint64(31))


def hash_ids(ids: pa.Array) -> Hashes:
    """Hash of each id, shape [N]: xxh64 of UTF-8 strings, splitmix64 of integers, null a constant.

    Args:
        ids: strings or int64; an empty string is an id like any other, not null.
    """
    if pa.types.is_integer(ids.type):
        values_N = ids.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        hashes_N = splitmix64(values_N.view(np.uint64))
    else:
        hashes_N = hash_strings(ids)
    if ids.null_count:
        hashes_N[ids.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes_N


def hash_strings(ids: pa.Array) -> Hashes:
    """xxh64 of each string, shape [N]; each distinct string is hashed once; null is undefined."""
    coded = ids.dictionary_encode()
    digest = xxhash.xxh64_intdigest
    distinct = coded.dictionary.to_pylist()
    table = np.fromiter(
        (digest(s.encode()) for s in distinct), dtype=np.uint64, count=len(distinct)
    )
    if not len(table):
        return np.full(len(ids), NULL_HASH, dtype=np.uint64)
    hashes_N: Hashes = table[coded.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    return hashes_N


def salt(name: str) -> np.uint64:
    """Salt of a feature, so that equal ids of two features fall on different rows."""
    return np.uint64(xxhash.xxh64_intdigest(name.encode(), seed=1))


def combine(parts: list[Hashes]) -> Hashes:
    """One hash of several, shape [N]; their order counts."""
    hashes_N = parts[0]
    for part_N in parts[1:]:
        hashes_N = splitmix64(hashes_N * COMBINE + part_N)
    return hashes_N


def rows_of(
    hashes_N: Hashes, feature_salt: np.uint64, table_rows: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Row of each hash in a table shared by all features, shape [N], in [0, table_rows)."""
    return (splitmix64(hashes_N ^ feature_salt) % np.uint64(table_rows)).astype(np.int64)
