"""Parquet files, `day=2022-04-08/domain=tab_1/part-0.parquet`, in the order of learning.

Staged files hold each shard's rows in their order. Merged as a trainer merges them (bucket, shard,
number), they give one sequence, whatever the speed of the join; the files are that sequence cut by
day and domain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from flows.backfill.rows import days
from flows.learning.example_reader import ExampleReader, Mask, Place
from flows.records import END_MS, ExampleHeader, example_schema, floor_ms
from flows.settings import Settings

ROWS_A_GROUP = 131_072
ROWS_A_FILE = 64 * ROWS_A_GROUP
PARTITIONS = ("day", "domain")


def write_parquet(
    settings: Settings, staged: Path, target: Path, on_rows: Callable[[int], None]
) -> int:
    """Write the staged examples of a folder as a dataset.

    Args:
        settings: of the backfill.
        staged: folder of `flows.backfill.sinks.ExampleFiles`.
        target: folder of the dataset, made anew.
        on_rows: called with the number of rows written so far.

    Returns:
        Size of the files in bytes.
    """
    schema = example_schema(settings).append(pa.field("day", pa.string()))

    def batches() -> Iterator[pa.RecordBatch]:
        num_rows = 0
        for table in in_order(settings, staged):
            table = table.append_column(schema.field("day"), days(table))
            yield from table.combine_chunks().to_batches()
            num_rows += table.num_rows
            on_rows(num_rows)

    fields = pa.schema([schema.field(name) for name in PARTITIONS])
    parquet = ds.ParquetFileFormat()
    target.mkdir(parents=True)
    ds.write_dataset(
        ds.Scanner.from_batches(batches(), schema=schema, use_threads=False),
        target,
        format=parquet,
        file_options=parquet.make_write_options(compression="zstd"),
        partitioning=ds.partitioning(fields, flavor="hive"),
        basename_template="part-{i}.parquet",
        use_threads=False,
        preserve_order=True,
        min_rows_per_group=ROWS_A_GROUP,
        max_rows_per_group=ROWS_A_GROUP,
        max_rows_per_file=ROWS_A_FILE,
    )
    return sum(path.stat().st_size for path in target.rglob("*.parquet"))


def in_order(settings: Settings, staged: Path) -> Iterator[pa.Table]:
    """The staged examples in the one order in which they are learned."""
    shards, bucket_ms = settings.das.shards, settings.das.bucket_ms
    files: dict[int, deque[Path]] = {shard: deque() for shard in range(shards)}
    for path in sorted(staged.glob("*.arrow")):
        files[int(path.stem.partition("-")[0])].append(path)
    schema = example_schema(settings)
    reader = ExampleReader(Place.start(shards, shards), bucket_ms, schema, everything)
    totals = [0] * shards
    while True:
        for shard in reader.behind():
            table, first, through_ms = schema.empty_table(), totals[shard], END_MS
            if files[shard]:
                table = pa.ipc.open_file(str(files[shard].popleft())).read_all()
                through_ms = floor_ms(table["closed_ts_ms"][-1].as_py(), bucket_ms)
                totals[shard] += table.num_rows
            header = ExampleHeader(
                shard=shard, first=first, through_ms=through_ms, total=totals[shard]
            )
            reader.put(shard, 0, table, header)
        ready = reader.take()
        if ready is not None:
            yield ready.table
            if ready.ended:
                return


def everything(table: pa.Table) -> Mask:
    """Every row."""
    return np.ones(table.num_rows, dtype=np.bool_)
