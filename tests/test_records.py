"""Which shard an impression belongs to."""

from __future__ import annotations

import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flows.records import shard_of


@given(st.lists(st.text()), st.integers(1, 100))
def test_shard_is_the_hash_of_the_id(ids: list[str], shards: int) -> None:
    expected = [xxhash.xxh64_intdigest(i.encode()) % shards for i in ids]
    assert shard_of(pa.array(ids, pa.string()), shards).tolist() == expected
    halves = pa.chunked_array([ids[:3], ids[3:]], pa.string())
    assert shard_of(halves, shards).tolist() == expected
