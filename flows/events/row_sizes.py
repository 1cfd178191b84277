"""Which events are too large to be written on, by the bytes of their texts and lists.

Other columns have a fixed width. Mostly no row can be too large, which the longest values tell:
only if they could stand in one row are the rows looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.events.rules import Mask

OFFSET_BYTES = 4
"""Of each text in a list, beside its own."""
_Sizes = np.ndarray[Any, np.dtype[np.int64]]


def larger(table: pa.Table, most_bytes: int) -> Mask | None:
    """Rows whose texts and lists take more than `most_bytes` together; None: there is none."""
    varying = [column for column in table.columns if is_list(column.type) or is_text(column.type)]
    if sum(map(longest, varying)) <= most_bytes:
        return None
    size_N = np.zeros(table.num_rows, dtype=np.int64)
    for column in varying:
        size_N += np.concatenate([sizes(chunk) for chunk in column.chunks])
    large_N: Mask = size_N > most_bytes
    return large_N if large_N.any() else None


def longest(column: pa.ChunkedArray) -> int:
    """No value of a column takes more bytes; of a list of texts, as if all were the longest."""
    if is_text(column.type):
        return largest(pc.binary_length(column))
    most = largest(pc.list_value_length(column))
    items = column.type.value_type
    if not is_text(items):
        return most * width(items)
    return most and most * (OFFSET_BYTES + longest(pc.list_flatten(column)))


def sizes(array: pa.Array) -> _Sizes:
    """Bytes of each value; what a null may hide stays behind where rows are taken."""
    if is_text(array.type):
        return numbers(pc.binary_length(array))
    length_N, items = numbers(pc.list_value_length(array)), array.type.value_type
    if not is_text(items):
        return length_N * np.int64(width(items))
    end_M = np.cumsum(np.append(0, numbers(pc.binary_length(array.flatten())) + OFFSET_BYTES))
    end_N = np.cumsum(length_N)
    size_N: _Sizes = end_M[end_N] - end_M[end_N - length_N]
    return size_N


def largest(lengths: pa.ChunkedArray) -> int:
    """0 if there is none."""
    return int(pc.max(lengths).as_py() or 0)


def numbers(lengths: pa.Array) -> _Sizes:
    """Lengths in which a null is 0."""
    return np.asarray(lengths.fill_null(0), dtype=np.int64)


def width(kind: pa.DataType) -> int:
    """Bytes of a number, rounded up."""
    return int(-(-kind.bit_width // 8))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return bool(pa.types.is_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether it holds lists."""
    return bool(pa.types.is_list(kind))
