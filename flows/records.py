"""The columns that travel: impressions, labels, predictions, examples, and their messages.

Internal topics carry Arrow IPC streams, one record batch a message, with a small JSON header in the
schema's metadata. A message of `fm_predictions` holds rows, then progress; a message of `examples`
holds rows of one shard with consecutive numbers, then perhaps a mark. Either may have no rows.
"""

from __future__ import annotations

import json
from typing import Any, TypedDict

import numpy as np
import polars as pl
import polars_hash
import pyarrow as pa

from flows.settings import Settings
from models.schema import Feature

END_MS = 1 << 60
"""Watermark of a partition whose log has ended (about the year 36 million)."""
BEGIN_MS = -(1 << 60)
"""Watermark of a partition nothing was read from."""
END_HEADER = "exfm-end"
"""Header of the valueless message behind which a finite log has nothing more."""
HEADER = b"exfm"
MAX_MESSAGE_ROWS = 8192
MAX_MESSAGE_BYTES = 700_000
"""Before compression; brokers refuse more than 1 MB unless told otherwise."""
MAX_EVENT_BYTES = 512 * 1024
"""Of an event's texts and lists; a larger one is rejected when it is read. With the labels and
logits of a hundred tasks beside them, an example must be a message still, or the join would end."""

ADDRESS = [
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("index", pa.int32()),
]
"""Where an event stands in its topic; `index` is its row within an Arrow message, 0 for JSON."""

LABELS = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("task", pa.int16(), nullable=False),  # position in settings.tasks
        pa.field("value", pa.int8(), nullable=False),  # 0 or 1
        pa.field("ts_ms", pa.int64(), nullable=False),
    ]
)


class PredictionHeader(TypedDict):
    """What a message vouches for: no further row of `partition` before `progress_ms`."""

    partition: int
    progress_ms: int


class ExampleHeader(TypedDict):
    """Place of an example message: the number of its first row, and the mark behind its rows."""

    shard: int
    first: int
    through_ms: int | None
    total: int | None


def feature_field(feature: Feature) -> pa.Field:
    """Arrow field of a declared feature; all features are nullable."""
    ident = pa.string() if feature.dtype == "string" else pa.int64()
    kinds = {"categorical": ident, "numeric": pa.float32(), "sequence": pa.list_(ident)}
    return pa.field(feature.name, kinds[feature.kind])


def impression_columns(settings: Settings) -> list[pa.Field]:
    """Fields of an impression as applications write it."""
    return [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("ts_ms", pa.int64(), nullable=False),
        *(feature_field(f) for f in settings.features),
        *(pa.field(name, pa.float64()) for name in settings.oracles),
    ]


def impression_schema(settings: Settings) -> pa.Schema:
    """A decoded impression: what the application wrote, and where it stands in the topic."""
    return pa.schema([*impression_columns(settings), *ADDRESS])


def prediction_schema(settings: Settings) -> pa.Schema:
    """The teacher's logged prediction: one row an impression, one logit a task."""
    return pa.schema(
        [
            pa.field("impression_id", pa.string(), nullable=False),
            pa.field("ts_ms", pa.int64(), nullable=False),  # of the impression
            *ADDRESS,
            pa.field("fm_version", pa.int64()),  # null: no snapshot yet
            *(pa.field(f"fm_logit_{t.name}", pa.float32()) for t in settings.tasks),
        ]
    )


def example_schema(settings: Settings) -> pa.Schema:
    """A training example: tasks of one window share a row, tasks of other windows are masked."""
    fields = [*impression_columns(settings)]
    for task in settings.tasks:
        fields += [
            pa.field(f"label_{task.name}", pa.int8()),
            pa.field(f"mask_{task.name}", pa.bool_()),  # true: the label counts
            pa.field(f"fm_logit_{task.name}", pa.float32()),
        ]
    return pa.schema(
        [
            *fields,
            pa.field("fm_version", pa.int64()),
            pa.field("closed_ts_ms", pa.int64()),
            pa.field("correction", pa.int32()),  # 0: the first example of its tasks
            pa.field("shard", pa.int16()),
            pa.field("number", pa.int64()),  # running number within the shard
        ]
    )


def encode(table: pa.Table, header: PredictionHeader | ExampleHeader) -> bytes:
    """One message: an Arrow IPC stream whose schema metadata holds the header.

    It is not compressed: Kafka's clients compress whole batches (`kafka.compression`).
    """
    schema = table.schema.with_metadata({HEADER: json.dumps(header)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def parts(table: pa.Table) -> list[pa.Table]:
    """The rows of a table, of one message each; at least one part, which may be empty."""
    num_bytes, num_rows = int(table.nbytes), int(table.num_rows)
    step = MAX_MESSAGE_ROWS
    if num_bytes > MAX_MESSAGE_BYTES:
        step = max(1, min(step, num_rows * MAX_MESSAGE_BYTES // num_bytes))
    evenly = [table.slice(start, step) for start in range(0, max(1, num_rows), step)]
    return [part for even in evenly for part in halves(even)]


def halves(table: pa.Table) -> list[pa.Table]:
    """A table, cut until no part is too large for a message, or a row by itself."""
    if table.nbytes <= MAX_MESSAGE_BYTES or table.num_rows < 2:
        return [table]
    middle = table.num_rows // 2
    return halves(table.slice(0, middle)) + halves(table.slice(middle))


def decode(message: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and header of a message that `encode` made.

    Raises:
        ValueError: the bytes are not such a message.
    """
    try:
        table = pa.ipc.open_stream(message).read_all()
        header = json.loads((table.schema.metadata or {})[HEADER])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise ValueError(f"not an exfm message: {error!r}") from error
    return table.replace_schema_metadata(None), header


def shard_of(
    impression_ids: pa.Array | pa.ChunkedArray, shards: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Shard of each impression, shape [N], in [0, shards): xxh64 of the id, the same for ever."""
    ids = pl.DataFrame({"id": pl.from_arrow(impression_ids)})
    hash_N = ids.select(polars_hash.col("id").nchash.xxhash64()).to_series().to_numpy()
    return (hash_N % np.uint64(shards)).astype(np.int64)


def floor_ms(ts_ms: int, step_ms: int) -> int:
    """The multiple of `step_ms` at or below `ts_ms`."""
    return ts_ms // step_ms * step_ms
