"""Damaged, absurd and malicious messages: rows or rejected, in little memory, and no crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.das_soak.fuzz import EVENT, FORMATS, SETTINGS, Crash, Target, fuzz_in_child
from benchmarks.das_soak.fuzz import messages as as_messages
from flows.events import arrow_events
from flows.events.arrow_events import BadMessage
from flows.events.arrow_sizes import expanded_bytes, unpacked_bytes
from flows.events.protobuf_events import MAX_GROUPS
from flows.events.rules import impression_rules
from flows.settings import Format

SCHEMA = impression_rules(SETTINGS).schema
TEXT = "x" * 1_000_000


@pytest.mark.parametrize("form", FORMATS)
def test_fuzzed_bytes_are_rows_or_rejected_in_any_batch(form: Format) -> None:
    found = fuzz_in_child(form, 150_000, seed=4)
    assert found.bytes >= 150_000
    assert 0 < found.rows < found.messages
    assert len(found.reasons) > 3


def test_end_of_the_fuzzed_process_is_noticed() -> None:
    nothing: Any = "nothing"
    with pytest.raises(Crash, match="exit code 2"):
        fuzz_in_child(nothing, 1, seed=0)


def events(**columns: Any) -> pa.Table:
    """Many times one event, with other columns."""
    num = len(next(iter(columns.values())))
    kept = [EVENT["impression_id"], EVENT["domain"], EVENT["ts_ms"]]
    usual = {
        name: pa.repeat(pa.scalar(value, SCHEMA.field(name).type), num)
        for name, value in zip(SCHEMA.names, kept, strict=False)
    }
    return pa.table({**usual, **columns})


def stream(table: pa.Table, codec: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def reason(message: bytes) -> str:
    with pytest.raises(BadMessage) as found:
        arrow_events.parse(message, SCHEMA)
    return found.value.reason


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("column", ["user_id", "ignored"])
def test_compressed_message_is_measured_before_it_is_unpacked(codec: str, column: str) -> None:
    small = events(**{column: pa.array(np.zeros(20, dtype=np.int64))})
    assert arrow_events.parse(stream(small, codec), SCHEMA).num_rows == 20
    zeros = pa.array(np.zeros(arrow_events.MAX_BYTES // 8, dtype=np.int64))
    message = stream(pa.table({column: zeros}), codec)
    assert len(message) < arrow_events.MAX_BYTES // 100
    assert unpacked_bytes(message) > arrow_events.MAX_BYTES
    assert reason(message) == "too_large"


def views(text: str, num: int) -> pa.Array:
    """The same text in each row, which stands there once."""
    _, view, *texts = pa.array([text]).cast(pa.string_view()).buffers()
    repeated = pa.py_buffer(view.to_pybytes()[:16] * num)
    return pa.Array.from_buffers(pa.string_view(), num, [None, repeated, *texts])


def dictionary(text: Any, num: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(num, dtype=np.int8), pa.array([text]))


@pytest.mark.parametrize("make", [views, dictionary])
def test_text_that_many_rows_name_is_measured_before_it_is_written_out(make: Any) -> None:
    table = events(device=make(TEXT, 3))
    assert arrow_events.parse(stream(table), SCHEMA)["device"].to_pylist() == [TEXT] * 3
    message = stream(events(device=make(TEXT, 200)))
    assert len(message) < 2 * len(TEXT)
    assert reason(message) == "too_large"


def test_nulls_without_bytes_are_measured_before_they_are_written_out() -> None:
    nulls = pa.ListArray.from_arrays([0, arrow_events.MAX_BYTES // 8 + 1], pa.nulls(2**31 - 1))
    message = stream(events(seen=nulls))
    assert len(message) < 2000
    assert reason(message) == "too_large"


def test_written_out_size_is_that_of_the_values() -> None:
    lists = dictionary(["a", "b"], 10)
    for array, least in ((views("abc", 5), 15), (dictionary("abcd", 5), 20), (lists, 20)):
        assert expanded_bytes(pa.chunked_array([array, array.slice(1)])) >= least
    assert expanded_bytes(pa.chunked_array([[[1, 2]]])) == 0
    assert expanded_bytes(pa.chunked_array([pa.array([None, "ab"], pa.string_view())])) == 2


def test_message_of_too_many_rows_is_rejected() -> None:
    table = pa.table({"x": pa.nulls(arrow_events.MAX_ROWS + 1)})
    assert reason(stream(table)) == "too_large"


def test_groups_nested_deeply_are_rejected_alone() -> None:
    target = Target("protobuf")
    head = target.corpus[0]
    opened, closed = b"\x7b", b"\x7c"  # of field 15, which is ours no more than any other
    deep = [head + opened * n + closed * n for n in (MAX_GROUPS, MAX_GROUPS + 1, 10**6)]
    flat = head + (opened + closed) * 10 * MAX_GROUPS
    odd = head + opened * (MAX_GROUPS + 1) + b"\xff"
    decoded = target.decoder.decode(as_messages([head, *deep, flat, odd]))
    assert decoded.table["offset"].to_pylist() == [0, 1, 4]
    assert {r.reason for r in decoded.rejected} == {"not_protobuf"}


def test_text_full_of_tags_is_no_nesting() -> None:
    target = Target("protobuf")
    table = pa.Table.from_pylist([{**EVENT, "device": "c" * 50_000}], schema=SCHEMA)
    decoded = target.decoder.decode(as_messages(target.write(table)))
    assert decoded.table["device"].to_pylist() == ["c" * 50_000]
