"""Which shard an impression belongs to, and which rows make a message."""

from __future__ import annotations

import pyarrow as pa
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.records import (
    MAX_EVENT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_ROWS,
    ExampleHeader,
    encode,
    example_schema,
    parts,
    shard_of,
)
from flows.settings import Settings


@given(st.lists(st.text()), st.integers(1, 100))
def test_shard_is_the_hash_of_the_id(ids: list[str], shards: int) -> None:
    expected = [xxhash.xxh64_intdigest(i.encode()) % shards for i in ids]
    assert shard_of(pa.array(ids, pa.string()), shards).tolist() == expected
    halves = pa.chunked_array([ids[:3], ids[3:]], pa.string())
    assert shard_of(halves, shards).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 10, 1000, 400_000, 800_000]), max_size=40))
def test_parts_are_rows_in_order_none_too_large(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths for _ in range(200 if length < 1000 else 1)]
    table = pa.table({"text": pa.array(texts, pa.string())})
    found = parts(table)
    assert pa.concat_tables(found)["text"].to_pylist() == texts
    assert all(part.num_rows for part in found) or (len(found) == 1 and not texts)
    for part in found:
        assert part.num_rows <= MAX_MESSAGE_ROWS
        assert part.nbytes <= MAX_MESSAGE_BYTES or part.num_rows == 1


def test_parts_of_many_small_rows() -> None:
    table = pa.table({"n": range(3 * MAX_MESSAGE_ROWS + 1)})
    assert [part.num_rows for part in parts(table)] == [*[MAX_MESSAGE_ROWS] * 3, 1]


def test_example_of_the_largest_event_is_a_message() -> None:
    tasks = [{"name": f"task{i}", "window_s": 1, "oracle": f"p{i}"} for i in range(100)]
    features = [{"name": f"f{i}", "kind": "sequence"} for i in range(100)]
    config = {"domains": ["feed"], "tasks": tasks, "features": features}
    students = [{"name": "one", "tasks": ["task0"]}]
    schema = example_schema(Settings.model_validate({**config, "students": students}))
    row = {**dict.fromkeys(schema.names, 1), **{f"f{i}": [""] for i in range(100)}}
    row |= {"impression_id": "i", "domain": "feed", **{f"mask_task{i}": True for i in range(100)}}
    row["f0"] = [""] * (MAX_EVENT_BYTES // 4 - 101)
    table = pa.Table.from_pylist([row] * 2, schema=schema)
    header = ExampleHeader(shard=0, first=0, through_ms=0, total=2)
    found = parts(table)
    assert [part.num_rows for part in found] == [1, 1]
    assert max(len(encode(part, header)) for part in found) < 1_000_000
