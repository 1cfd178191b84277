"""What was known of a user or an item at the time of each row: counts and histories, causally."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

Ints = np.ndarray[Any, np.dtype[np.int64]]


def count_before(rows: pl.DataFrame, keys: list[str], known: pl.DataFrame) -> Ints:
    """How many known events of a row's keys lie strictly before it, shape [N].

    Args:
        rows: sorted by `ts_ms`; the key columns and `ts_ms`.
        keys: columns that must agree.
        known: the key columns and `known_ms`, in any order.
    """
    running = (
        known.sort("known_ms")
        .with_columns(count=pl.int_range(1, pl.len() + 1).over(keys))
        .select(*keys, "known_ms", "count")
    )
    joined = rows.select(*keys, "ts_ms").join_asof(
        running,
        left_on="ts_ms",
        right_on="known_ms",
        by=keys,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    counts: Ints = joined["count"].fill_null(0).cast(pl.Int64).to_numpy()
    return counts


def last_before(
    rows: pl.DataFrame, key: str, known: pl.DataFrame, value: str, length: int
) -> pa.ListArray:
    """The last values known of a row's key strictly before it, newest first.

    Args:
        rows: sorted by `ts_ms`; the key column and `ts_ms`.
        key: column that must agree.
        known: the key column, `known_ms` and the value column; ties keep their order.
        value: column of `known`.
        length: values kept of a row.
    """
    counts_N = count_before(rows, [key], known)
    ordered = known.sort(key, "known_ms", maintain_order=True)
    first = ordered.with_row_index("first").group_by(key).agg(pl.col("first").min())
    starts_N = rows.select(key).join(first, on=key, how="left", maintain_order="left")["first"]
    ends_N = starts_N.fill_null(0).cast(pl.Int64).to_numpy() + counts_N
    kept_N = np.minimum(counts_N, length)
    offsets = np.concatenate([[0], np.cumsum(kept_N)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept_N)
    at = np.repeat(ends_N, kept_N) - 1 - within
    values = ordered[value].gather(at).to_arrow()
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
