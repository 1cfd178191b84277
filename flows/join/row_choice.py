"""A few rows of a large table: the others are looked at once, and never copied."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def rows_among(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Rows of `table` whose `column` is among `values`, in their order."""
    parts = []
    for batch in table.to_batches():
        chosen = pc.is_in(batch.column(column), value_set=values)
        parts.append(batch.take(pa.array(np.flatnonzero(chosen))))
    return pa.Table.from_batches(parts, table.schema)
