"""Stores of segments against a list, over merges, files and restarts."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.join import segments
from flows.join.recovery import WAY_OUT, StateFull
from flows.join.segment import Segment
from flows.join.segment_folder import SegmentError, SegmentFolder, wait_for_writes
from flows.join.segments import SegmentStore

SCHEMA = pa.schema([("ts_ms", pa.int64()), ("name", pa.string()), ("key", pa.uint64())])
TS_MS = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(TS_MS, max_size=30)),
        st.tuples(st.just("forget"), TS_MS),
        st.tuples(st.just("between"), st.tuples(TS_MS, TS_MS)),
        st.tuples(st.just("spill"), st.none()),
        st.tuples(st.just("save"), st.none()),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=60,
)
Row = tuple[int, str]


def table(ts_ms: list[int], number: int) -> pa.Table:
    names = [f"{number}-{n}" for n in range(len(ts_ms))]
    keys = [hash((number, n)) % 1000 for n in range(len(ts_ms))]
    return pa.table([ts_ms, names, keys], schema=SCHEMA)


def rows(found: pa.Table) -> list[Row]:
    return list(zip(found["ts_ms"].to_pylist(), found["name"].to_pylist(), strict=True))


def stable(found: list[Row]) -> list[Row]:
    """By time; rows of one time as they come."""
    return sorted(found, key=lambda row: row[0])


@hypothesis_settings(max_examples=200, deadline=None)
@given(STEPS)
def test_store_agrees_with_a_list(steps: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = SegmentFolder(Path(path))
        store, model, floor_ms = SegmentStore(folder, "rows", SCHEMA), list[Row](), 0
        for number, (what, value) in enumerate(steps):
            if what == "append":
                assert isinstance(value, list)
                new = table(value, number)
                store.append(new)
                model += [row for row in rows(new) if row[0] >= floor_ms]
            elif what == "forget":
                assert isinstance(value, int)
                floor_ms = max(floor_ms, value)
                store.forget(value)
                model = [row for row in model if row[0] >= floor_ms]
            elif what == "between":
                assert isinstance(value, tuple)
                inside = [row for row in model if value[0] <= row[0] < value[1]]
                found = rows(store.between(*value))
                assert stable(found) == stable(inside)
                assert store.count(*value) == len(inside)
            elif what == "spill":
                folder.spill()
            else:
                state = store.save()
                folder.retire({file["name"] for file in state["files"]})
                if what == "restart":
                    next_file, folder = folder.number, SegmentFolder(Path(path))
                    folder.resume(next_file, [file["name"] for file in state["files"]])
                    store = SegmentStore(folder, "rows", SCHEMA)
                    store.restore(state)
            assert store.oldest_since(store.floor_ms) == min(
                (row[0] for row in model), default=None
            )
        assert all(is_sorted(t["ts_ms"].to_pylist()) for t in store.tables())
        wait_for_writes()


def is_sorted(values: list[int]) -> bool:
    return values == sorted(values)


def test_store_sorted_by_another_column(tmp_path: Path) -> None:
    store, expected = SegmentStore(SegmentFolder(tmp_path), "rows", SCHEMA, order="key"), set[Row]()
    for number in range(40):
        new = table([number] * (number % 7), number)
        store.append(new)
        expected |= set(rows(new))
        if number % 10 == 5:
            store.restore(store.save())
    store.forget(20)
    found = [row for t in store.tables() for row in rows(t)]
    assert {row for row in found if row[0] >= 20} == {row for row in expected if row[0] >= 20}
    assert all(is_sorted(t["key"].to_pylist()) for t in store.tables())


def test_segments_stay_few(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    store = SegmentStore(folder, "rows", SCHEMA)
    for number in range(2000):
        store.append(table([number], number))
        if number % 3 == 0:
            state = store.save()
            folder.retire({file["name"] for file in state["files"]})
    assert len(state["files"]) < 8 * 4
    assert len(store.tables()) < 8 * 5
    assert store.count(0, 2000) == 2000


@pytest.mark.parametrize("max_merged", [4000, 8])
def test_many_rows_are_written_before_a_snapshot(
    max_merged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also rows too wide to be merged."""
    monkeypatch.setattr(segments, "MAX_FRESH_BYTES", 1000)
    monkeypatch.setattr(segments, "MAX_MERGED_BYTES", max_merged)
    store = SegmentStore(SegmentFolder(tmp_path), "rows", SCHEMA)
    for number in range(400):
        store.append(table([number], number))
    files = list(tmp_path.glob("*.arrow"))
    assert files
    assert rows(store.between(0, 400)) == [(n, f"{n}-0") for n in range(400)]
    assert store.num_bytes < 40_000
    state = store.save()
    store.restore(state)
    assert store.count(0, 400) == 400


def test_merging_is_bounded_in_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are, those merged at a time are small together."""
    monkeypatch.setattr(segments, "MAX_MERGED_BYTES", 50_000)
    folder, largest = SegmentFolder(tmp_path), 0
    store = SegmentStore(folder, "rows", SCHEMA)
    for number in range(600):
        store.append(table([number] * 50, number))
        state = store.save()
        folder.retire({file["name"] for file in state["files"]})
        largest = max(largest, *(file["size"] for file in state["files"]))
    assert 6_000 < largest < 55_000
    assert len(state["files"]) < 8 * store.num_bytes / 50_000 + 16
    assert store.count(0, 600) == 30_000


def test_rows_that_spill_are_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, may_write = SegmentFolder(tmp_path), Event()
    store, write = SegmentStore(folder, "rows", SCHEMA), folder.write

    def hesitant(kind: str, rows: pa.Table) -> Segment:
        assert may_write.wait(60)
        return write(kind, rows)

    monkeypatch.setattr(folder, "write", hesitant)
    store.append(table([1, 5], 0))
    folder.spill()
    store.append(table([3], 1))
    folder.spill()  # one at a time
    assert rows(store.between(0, 9)) == [(1, "0-0"), (5, "0-1"), (3, "1-0")]
    store.forget(2)
    assert store.oldest_since(0) == 3
    assert not list(tmp_path.iterdir())
    may_write.set()
    found = SegmentStore(SegmentFolder(tmp_path), "rows", SCHEMA)
    found.restore(store.save())
    assert stable(rows(found.between(0, 9))) == [(3, "1-0"), (5, "0-1")]


def test_rows_that_were_spilled_leave_the_memory_with_the_next_rows(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    store = SegmentStore(folder, "rows", SCHEMA)
    store.append(table([1, 5], 0))
    (in_memory,) = store.tables()
    folder.spill()
    wait_for_writes()
    store.append(table([3], 1))
    mapped, fresh = store.tables()
    assert rows(mapped) == rows(in_memory)
    assert store.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) > 0
    assert rows(fresh) == [(3, "1-0")]


def test_rows_are_forgotten_while_they_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = SegmentFolder(tmp_path), segments.mergeable
    store = SegmentStore(folder, "rows", SCHEMA)
    for number in range(segments.MERGED - 1):
        store.append(table([number], number))
        store.save()
    store.append(table([7], 7))

    def forgetful(found: list[Segment]) -> int:
        store.forget(8)
        return real(found)

    monkeypatch.setattr(segments, "mergeable", forgetful)
    folder.spill()
    wait_for_writes()
    assert store.save()["files"] == []
    assert store.tables() == []


def test_snapshot_that_names_a_file_which_is_gone_is_refused(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path / "0")
    store = SegmentStore(folder, "rows", SCHEMA)
    store.append(table([1], 0))
    (file,) = store.save()["files"]
    (tmp_path / "0" / file["name"]).unlink()
    store.append(table([2], 1))
    named = {file["name"] for file in store.save()["files"]}
    with pytest.raises(SegmentError, match=rf"{file['name']} is gone; {WAY_OUT}"):
        folder.retire(named)


def test_spill_without_room_stops_the_next_snapshot(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path / "file" / "0")
    (tmp_path / "file").write_text("no folder")
    store = SegmentStore(folder, "rows", SCHEMA)
    store.append(table([1], 0))
    folder.spill()
    with pytest.raises(
        StateFull, match=r"rows-0.*arrow cannot be written: Not a directory; make room"
    ):
        store.save()


def test_damaged_file_is_not_merged_into_one_with_a_right_checksum(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    store = SegmentStore(folder, "rows", SCHEMA)
    for number in range(segments.MERGED - 1):
        store.append(table([number], number))
        state = store.save()
    path = tmp_path / state["files"][3]["name"]
    content = bytearray(path.read_bytes())
    content[content.index(b"3-0")] ^= 1
    path.write_bytes(content)
    store.append(table([9], 9))
    with pytest.raises(SegmentError, match=rf"{path.name} is damaged: .*{WAY_OUT}"):
        store.save()


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), max_size=12),
    st.sets(st.integers(-1, 31)),
    st.integers(0, 20),
)
@hypothesis_settings(deadline=None)
def test_rows_of_some_times_are_found(
    batches: list[list[int]], asked: set[int], floor_ms: int
) -> None:
    with tempfile.TemporaryDirectory() as path:
        store = SegmentStore(SegmentFolder(Path(path)), "rows", SCHEMA)
        for number, batch in enumerate(batches):
            store.append(table(sorted(batch), number))
            if number == 5:
                store.save()
        store.forget(floor_ms)
        found = store.at(np.array(sorted(asked), dtype=np.int64))
        everything = rows(store.between(0, 31))
        assert sorted(rows(found)) == sorted(row for row in everything if row[0] in asked)


def test_half_written_file_is_no_segment(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    store = SegmentStore(folder, "rows", SCHEMA)
    store.append(table([1], 0))
    state = store.save()
    (tmp_path / ".rows-00000001.arrow").write_bytes(b"half")
    (tmp_path / "rows-00000001.arrow").write_bytes(b"of a time that never was")
    folder = SegmentFolder(tmp_path)
    folder.resume(1, [file["name"] for file in state["files"]])
    assert [path.name for path in tmp_path.iterdir()] == ["rows-00000000.arrow"]
    store = SegmentStore(folder, "rows", SCHEMA)
    store.restore(state)
    assert rows(store.between(0, 9)) == [(1, "0-0")]


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone"])
def test_damage_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    store = SegmentStore(SegmentFolder(tmp_path), "rows", SCHEMA)
    store.append(table([1, 2, 3], 0))
    state = store.save()
    path = tmp_path / state["files"][0]["name"]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-1], "grow": data + b"x"}.get(damage, data))
    if damage == "gone":
        path.unlink()
    with pytest.raises(SegmentError, match=rf"{path.name} .*{re.escape(WAY_OUT)}"):
        store.restore(state)
