"""What a backfill has written, it takes once, whatever snapshot the join goes on from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from bytewax.outputs import StatefulSinkPartition

from flows.backfill.plan import Plan
from flows.backfill.rows import ShardRows
from flows.backfill.sinks import ExampleFiles
from flows.join.recovery import RecoveryUnreadable
from flows.join.seal import SealBroken, Sealed
from flows.kafka.sink import Outgoing
from flows.records import BEGIN_MS, END_MS, ExampleHeader, encode, example_schema
from flows.settings import Settings

START_MS = 1_700_000_000_000
WHOLE = Plan(from_ms=BEGIN_MS, to_ms=END_MS, spans={}, leave_out_quiet=True)


def message(settings: Settings, first: int, num: int) -> bytes:
    """Examples of shard 0, as the join sends them."""
    same = {"ts_ms": START_MS, "domain": "feed", "mask_click": False, "mask_conversion": False}
    rows = [{**same, "impression_id": f"i{n}", "number": n} for n in range(first, first + num)]
    table = pa.Table.from_pylist(rows, schema=example_schema(settings))
    header = ExampleHeader(shard=0, first=first, through_ms=START_MS, total=None)
    return encode(table, header)


def test_examples_that_come_again_are_taken_once(tiny_settings: Settings) -> None:
    rows = ShardRows(tiny_settings, WHOLE, None)
    rows.take(message(tiny_settings, 0, 3))
    resumed = ShardRows(tiny_settings, WHOLE, rows.save())
    again, header = resumed.take(message(tiny_settings, 0, 2))
    assert (again.num_rows, header["first"]) == (0, 3)
    new, header = resumed.take(message(tiny_settings, 2, 3))
    assert (new["number"].to_pylist(), header["first"]) == ([3, 4], 3)
    assert (resumed.total, resumed.counts["domain.feed"]) == (5, 5)
    with pytest.raises(RecoveryUnreadable, match="example 9 follows 4"):
        resumed.take(message(tiny_settings, 9, 1))


def test_backfill_misses_a_file_that_it_has_written(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    def part(state: Sealed | None) -> StatefulSinkPartition[Outgoing, Sealed]:
        return ExampleFiles(tiny_settings, WHOLE, tmp_path).build_part("examples", "0", state)

    writer = part(None)
    writer.write_batch([(b"0", message(tiny_settings, 0, 3), 3)])
    saved = writer.snapshot()
    part(saved)
    with pytest.raises(SealBroken, match="its xxh64 is"):
        part({**saved, "state": saved["state"][:-2] + b"\0."})
    part(None)  # removes what it does not know
    with pytest.raises(RecoveryUnreadable, match=r"0-0+\.arrow is gone"):
        part(saved)
