"""Whatever the messages, their repeats, interleaving and restarts: the same rows in one order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.learning.example_reader import ANY, ExampleReader, Mask, Place
from flows.learning.gaps import Gap
from flows.records import BEGIN_MS, END_MS, ExampleHeader

BUCKET_MS = 10
SCHEMA = pa.schema(
    [
        pa.field("closed_ts_ms", pa.int64()),
        pa.field("shard", pa.int16()),
        pa.field("number", pa.int64()),
        pa.field("keep", pa.bool_()),
    ]
)

Message = tuple[pa.Table, ExampleHeader]


def keep(table: pa.Table) -> Mask:
    return np.asarray(table["keep"].to_numpy(zero_copy_only=False), dtype=bool)


def reader_at(place: Place) -> ExampleReader:
    return ExampleReader(place, BUCKET_MS, SCHEMA, keep)


def rows_of(shard: int, closed: list[int], kept: list[bool], first: int, last: int) -> pa.Table:
    return pa.table(
        [closed[first:last], [shard] * (last - first), range(first, last), kept[first:last]],
        schema=SCHEMA,
    )


@st.composite
def shard_log(draw: st.DrawFn, shard: int) -> tuple[list[tuple[int, int, int]], list[Message]]:
    """Rows kept of one shard as (bucket, shard, number), and the messages that carried them."""
    raw = draw(st.lists(st.integers(0, 99), max_size=25))
    closed = sorted(raw, key=lambda ts: ts // BUCKET_MS)
    kept = draw(st.lists(st.booleans(), min_size=len(closed), max_size=len(closed)))
    messages: list[Message] = []
    done, marked = 0, False
    while not marked:
        if draw(st.integers(0, 5)) == 5:  # a writer restarts from its checkpoint
            done = draw(st.integers(0, done))
        last = len(closed) - draw(st.integers(0, len(closed) - done))
        header = ExampleHeader(shard=shard, first=done, through_ms=None, total=None)
        if last == len(closed) and not draw(st.booleans()):
            header["through_ms"], header["total"], marked = END_MS, last, True
        elif draw(st.booleans()):
            following = closed[last] // BUCKET_MS * BUCKET_MS if last < len(closed) else 100
            header["through_ms"], header["total"] = following, last
        messages.append((rows_of(shard, closed, kept, done, last), header))
        done = last
    wanted = [
        (ts // BUCKET_MS * BUCKET_MS, shard, number)
        for number, ts in enumerate(closed)
        if kept[number]
    ]
    return wanted, messages


@st.composite
def topic(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]], list[list[Message]]]:
    """Number of shards, rows in order, and the partitions of a whole topic."""
    num_shards = draw(st.integers(1, 4))
    partitions: list[list[Message]] = [[] for _ in range(draw(st.integers(1, 3)))]
    wanted: list[tuple[int, int, int]] = []
    for shard in range(num_shards):
        rows, messages = draw(shard_log(shard))
        wanted += rows
        partition = partitions[shard % len(partitions)]
        slots = sorted(
            draw(st.integers(0, len(partition))) for _ in messages
        )  # keeps the order within a shard
        for shift, (slot, message) in enumerate(zip(slots, messages, strict=True)):
            partition.insert(slot + shift, message)
    return num_shards, sorted(wanted), partitions


def sequence(table: pa.Table) -> list[tuple[int, int, int]]:
    closed, shard, number = (table[name].to_pylist() for name in SCHEMA.names[:3])
    return [
        (ts // BUCKET_MS * BUCKET_MS, s, n) for ts, s, n in zip(closed, shard, number, strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(case=topic(), data=st.data())
def test_reader_yields_every_row_once_in_order(
    case: tuple[int, list[tuple[int, int, int]], list[list[Message]]], data: st.DataObject
) -> None:
    num_shards, wanted, partitions = case
    place = Place.start(len(partitions), num_shards)
    reader, at = reader_at(place), list(place.positions)
    got: list[tuple[int, int, int]] = []
    restarts = 3
    while place.through_ms < END_MS:
        open_partitions = [p for p, messages in enumerate(partitions) if at[p] < len(messages)]
        partition = data.draw(st.sampled_from(open_partitions))
        for _ in range(data.draw(st.integers(1, 4))):
            if at[partition] < len(partitions[partition]):
                reader.put(partition, at[partition], *partitions[partition][at[partition]])
                at[partition] += 1
        ready = reader.take()
        if ready is not None:
            got += sequence(ready.table)
            assert ready.place.through_ms > place.through_ms
            place = ready.place
        if restarts and data.draw(st.integers(0, 9)) == 9:  # whatever was not handed out is lost
            restarts -= 1
            reader, at = reader_at(place), list(place.positions)
    assert got == wanted
    assert reader.pending_rows == 0


def retained(partition: list[Message], cut: int, bucket_ms: int) -> dict[int, tuple[int, int]]:
    """Of each shard in what is left: number of its first row, start of its first whole bucket."""
    found: dict[int, tuple[int, int]] = {}
    for table, header in partition[cut:]:
        ends = [ts // bucket_ms * bucket_ms + bucket_ms for ts in table["closed_ts_ms"].to_pylist()]
        ends += [] if header["through_ms"] is None else [header["through_ms"]]
        if ends and header["shard"] not in found:
            first = header["first"]
            found[header["shard"]] = (first, ends[0] if first else BEGIN_MS)
    return found


@settings(max_examples=300, deadline=None)
@given(case=topic(), data=st.data())
def test_new_reader_yields_a_function_of_what_is_retained(
    case: tuple[int, list[tuple[int, int, int]], list[list[Message]]], data: st.DataObject
) -> None:
    num_shards, wanted, partitions = case
    cuts, first, whole_ms = [], [0] * num_shards, [BEGIN_MS] * num_shards
    for partition in partitions:
        ends = [i for i, (_, header) in enumerate(partition) if header["through_ms"] == END_MS]
        cuts.append(data.draw(st.integers(0, min(ends, default=0))))
        if cuts[-1]:
            for shard, found in retained(partition, cuts[-1], BUCKET_MS).items():
                first[shard], whole_ms[shard] = found
    begins_ms = max(whole_ms)
    expected = [row for row in wanted if row[0] >= begins_ms and row[2] >= first[row[1]]]

    place = Place.oldest(cuts, num_shards)
    assert place.is_start
    reader, at = reader_at(place), list(place.positions)
    got: list[tuple[int, int, int]] = []
    restarts = 3
    while place.through_ms < END_MS:
        open_partitions = [p for p, messages in enumerate(partitions) if at[p] < len(messages)]
        partition_no = data.draw(st.sampled_from(open_partitions))
        for _ in range(data.draw(st.integers(1, 4))):
            if at[partition_no] < len(partitions[partition_no]):
                message = partitions[partition_no][at[partition_no]]
                reader.put(partition_no, at[partition_no], *message)
                at[partition_no] += 1
        ready = reader.take()
        if ready is not None:
            got += sequence(ready.table)
            assert ready.place.through_ms >= begins_ms
            place = ready.place
        if restarts and data.draw(st.integers(0, 9)) == 9:
            restarts -= 1
            reader, at = reader_at(place), list(place.positions)
    assert got == expected
    assert (reader.pending_rows, reader.passed_over, reader.gaps) == (0, 0, {})
    assert place.applied == tuple(
        max(shard_first, *(number + 1 for _, s, number in numbers(partitions) if s == shard), 0)
        for shard, shard_first in enumerate(first)
    )


def numbers(partitions: list[list[Message]]) -> list[tuple[int, int, int]]:
    """All rows of a topic."""
    tables = [table for messages in partitions for table, _ in messages]
    return [row for table in tables for row in sequence(table)]


def test_new_reader_does_not_begin_before_it_has_seen_all_shards() -> None:
    reader = reader_at(Place.oldest([7, 3], 2))
    assert reader.firsts() == [0, 0]
    early = rows_of(0, [*range(5, 55, 10)], [True] * 5, 1, 5)  # buckets 10 to 40, from number 1 on
    reader.put(0, 7, early, ExampleHeader(shard=0, first=1, through_ms=50, total=5))
    assert reader.take() is None
    late = rows_of(1, [25, 35, 45], [True] * 3, 0, 3)
    later = late.set_column(2, "number", pa.array([90, 91, 92], pa.int64()))
    reader.put(1, 3, later.slice(0, 1), ExampleHeader(shard=1, first=90, through_ms=30, total=91))
    ready = reader.take()  # bucket 20 may have had rows before number 90
    assert reader.begins_ms == 30
    assert ready is not None
    assert (ready.table.num_rows, ready.place.through_ms) == (0, 30)
    assert reader.firsts() == [1, 90]
    reader.put(1, 4, later.slice(1), ExampleHeader(shard=1, first=91, through_ms=50, total=93))
    ready = reader.take()
    assert ready is not None
    assert sequence(ready.table) == [(30, 0, 3), (30, 1, 91), (40, 0, 4), (40, 1, 92)]
    assert ready.place == Place(positions=(8, 5), applied=(5, 93), through_ms=50)
    assert reader.passed_over == 0


def test_shards_that_lag_the_beginning_are_read_up_to_it() -> None:
    reader = reader_at(Place.oldest([1, 1], 2))
    mark = ExampleHeader(shard=1, first=9, through_ms=40, total=9)
    reader.put(1, 1, SCHEMA.empty_table(), mark)
    table = rows_of(0, [5, 15, 25, 35, 45], [True] * 5, 0, 5)
    for number in range(1, 4):
        assert reader.take() is None
        header = ExampleHeader(shard=0, first=number, through_ms=10 * number + 10, total=number + 1)
        reader.put(0, number, table.slice(number, 1), header)
        assert reader.pending_rows <= 1  # what comes before the beginning is not kept
    ready = reader.take()
    assert ready is not None
    assert (ready.table.num_rows, ready.place.through_ms) == (0, 40)
    assert ready.place.applied == (4, 9)


def test_reader_goes_on_without_a_shard_that_it_never_saw() -> None:
    reader = reader_at(Place.oldest([0, 5], 2))
    on_time = rows_of(0, [5, 15], [True] * 2, 0, 2)
    reader.put(0, 0, on_time, ExampleHeader(shard=0, first=0, through_ms=20, total=2))
    ready = reader.take({1})
    assert ready is not None
    assert ready.place.applied == (2, ANY)
    reader = reader_at(ready.place)
    late = rows_of(1, [15, 25], [True] * 2, 0, 2)
    reader.put(1, 5, late, ExampleHeader(shard=1, first=70, through_ms=30, total=72))
    assert (reader.passed_over, reader.pending_rows, reader.gaps) == (1, 1, {})


def test_missing_beginning_of_a_topic_that_holds_its_first_message_is_a_gap() -> None:
    reader = reader_at(Place.oldest([0], 1))
    table = rows_of(0, [5], [True], 0, 1)
    reader.put(0, 0, table, ExampleHeader(shard=0, first=327, through_ms=10, total=328))
    assert reader.gaps == {0: Gap(shard=0, expected=0, found=327, partition=0, offset=0)}


def test_reader_counts_repeats() -> None:
    reader = reader_at(Place.start(1, 1))
    table = rows_of(0, [1, 2, 3], [True] * 3, 0, 3)
    header = ExampleHeader(shard=0, first=0, through_ms=None, total=None)
    reader.put(0, 0, table, header)
    reader.put(0, 1, table.slice(1), {**header, "first": 1})
    assert reader.repeats == 2
    assert reader.pending_rows == 3


def test_reader_refuses_a_mark_whose_total_disagrees() -> None:
    reader = reader_at(Place.start(1, 1))
    table = rows_of(0, [1, 2, 3], [True] * 3, 0, 2)
    reader.put(0, 0, table, ExampleHeader(shard=0, first=0, through_ms=10, total=3))
    assert reader.take() is None
    assert reader.gaps == {0: Gap(shard=0, expected=2, found=3, partition=0, offset=0)}


@settings(max_examples=300, deadline=None)
@given(case=topic(), data=st.data())
def test_reader_of_a_log_with_gaps_yields_nothing_out_of_order(
    case: tuple[int, list[tuple[int, int, int]], list[list[Message]]], data: st.DataObject
) -> None:
    num_shards, wanted, partitions = case
    following = [0] * num_shards
    reader, got = reader_at(Place.start(len(partitions), num_shards)), []
    for partition, messages in enumerate(partitions):
        for offset, (table, header) in enumerate(messages):
            if data.draw(st.integers(0, 4)) == 4:  # the broker has lost it
                continue
            shard, first = header["shard"], header["first"]
            behind = max(first + table.num_rows, header["total"] or 0)
            reader.put(partition, offset, table, header)
            if first <= following[shard]:
                following[shard] = max(following[shard], first + table.num_rows)
            gap = reader.gaps.get(shard)
            assert gap is None or gap.expected == following[shard] < gap.found
            assert (behind <= following[shard]) or gap is not None
            ready = reader.take()
            got += [] if ready is None else sequence(ready.table)
    assert got == sorted(got)
    assert set(got) <= {row for row in wanted if row[2] < following[row[1]]}
    assert reader.repeats <= sum(
        table.num_rows for messages in partitions for table, _ in messages
    ) - sum(following)


def test_gap_is_no_repeat_and_is_gone_once_it_is_filled() -> None:
    reader = reader_at(Place.start(1, 2))
    table = rows_of(1, [1, 2, 13, 14, 25, 26], [True] * 6, 0, 6)

    def put(offset: int, first: int, last: int, through_ms: int) -> None:
        header = ExampleHeader(shard=1, first=first, through_ms=through_ms, total=last)
        reader.put(0, offset, table.slice(first, last - first), header)

    put(0, 0, 1, 0)
    put(1, 3, 5, 20)
    gap = Gap(shard=1, expected=1, found=3, partition=0, offset=1)
    assert (reader.gaps, reader.repeats) == ({1: gap}, 0)
    put(2, 5, 6, 30)
    assert (reader.gaps, reader.repeats) == ({1: gap}, 0)
    put(3, 0, 2, 10)  # the writer has begun again
    assert reader.gaps == {1: replace(gap, expected=2)}
    put(4, 2, 3, 10)
    assert reader.gaps == {}
    put(5, 3, 6, 30)
    reader.put(0, 6, table.slice(0, 0), ExampleHeader(shard=0, first=0, through_ms=30, total=0))
    ready = reader.take()
    assert ready is not None
    assert [number for _, _, number in sequence(ready.table)] == [*range(6)]
    assert (reader.gaps, reader.repeats) == ({}, 1)


def test_reader_names_the_shards_that_hold_back() -> None:
    reader = reader_at(Place.start(1, 2))
    reader.put(0, 0, SCHEMA.empty_table(), ExampleHeader(shard=0, first=0, through_ms=10, total=0))
    assert reader.behind() == [1]


def test_reader_goes_on_without_a_shard_and_counts_what_it_missed() -> None:
    reader = reader_at(Place.start(2, 2))
    on_time = rows_of(0, [5, 15, 25], [True] * 3, 0, 3)
    reader.put(0, 0, on_time, ExampleHeader(shard=0, first=0, through_ms=30, total=3))
    assert reader.take() is None
    ready = reader.take({1})
    assert ready is not None
    assert sequence(ready.table) == [(0, 0, 0), (10, 0, 1), (20, 0, 2)]
    assert reader.marks()[1] < reader.through_ms == 30
    assert list(reader.behind({1})) == [0]

    late = rows_of(1, [5, 15, 35], [True, False, True], 0, 3)
    reader.put(1, 0, late, ExampleHeader(shard=1, first=0, through_ms=40, total=3))
    reader.put(0, 1, SCHEMA.empty_table(), ExampleHeader(shard=0, first=3, through_ms=40, total=3))
    assert reader.passed_over == 1
    ready = reader.take()  # it has caught up
    assert ready is not None
    assert sequence(ready.table) == [(30, 1, 2)]
    assert ready.place == Place(positions=(2, 1), applied=(3, 3), through_ms=40)


def test_restarted_reader_passes_over_the_same_rows_and_keeps_the_numbers() -> None:
    place = Place(positions=(0, 0), applied=(3, 0), through_ms=30)
    reader = reader_at(place)
    late = rows_of(1, [5, 15], [True, True], 0, 2)
    reader.put(1, 0, late, ExampleHeader(shard=1, first=0, through_ms=20, total=2))
    assert reader.passed_over == 2
    assert reader.pending_rows == 0
    assert reader.nothing().place == Place(positions=(0, 1), applied=(3, 2), through_ms=30)
    following = rows_of(1, [5, 15, 35], [True] * 3, 1, 3)
    reader.put(1, 1, following, ExampleHeader(shard=1, first=1, through_ms=40, total=3))
    assert (reader.repeats, reader.pending_rows) == (1, 1)
    reader.put(0, 0, SCHEMA.empty_table(), ExampleHeader(shard=0, first=3, through_ms=40, total=3))
    ready = reader.take()
    assert ready is not None
    assert sequence(ready.table) == [(30, 1, 2)]


def test_end_of_the_log_waits_for_a_shard_that_was_left_out() -> None:
    reader = reader_at(Place.start(1, 2))
    table = rows_of(0, [5], [True], 0, 1)
    reader.put(0, 0, table, ExampleHeader(shard=0, first=0, through_ms=END_MS, total=1))
    assert reader.take({1}) is None
    late = rows_of(1, [5], [True], 0, 1)
    reader.put(0, 1, late, ExampleHeader(shard=1, first=0, through_ms=END_MS, total=1))
    ready = reader.take()
    assert ready is not None
    assert ready.ended
    assert sequence(ready.table) == [(0, 0, 0), (0, 1, 0)]
    assert reader.passed_over == 0
