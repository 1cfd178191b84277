"""What a shard counts, and what it keeps on disk, case by case."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.join import label_join
from flows.join.label_join import ARRIVING
from flows.join.recovery import StateFull
from flows.join.segment_folder import SegmentError, wait_for_writes
from flows.join.shard import Shard
from flows.join.watermarks import PatientWatermarks, Watermarks, sources
from flows.records import decode, impression_schema, prediction_schema
from flows.settings import Settings
from monitoring.metrics import DAS_REPEATS, DAS_TOO_LATE, DAS_UNMATCHED

Row = dict[str, Any]
SETTINGS = Settings.model_validate(
    {
        "domains": ["feed"],
        "features": [{"name": "item", "kind": "categorical"}],
        "tasks": [{"name": "click", "window_s": 10}, {"name": "buy", "window_s": 60}],
        "students": [{"name": "late", "tasks": ["click"]}],
        "topics": {
            "impressions": {"name": "i", "partitions": 1},
            "labels": {"name": "l", "partitions": 1},
        },
        "das": {"shards": 1},
    }
)


def impression(ident: int, ts_s: int) -> Row:
    return {"impression_id": f"i{ident}", "domain": "feed", "ts_ms": ts_s * 1000, "item": "a"}


def label(ident: int, ts_s: int, task: int, value: int) -> Row:
    return {"impression_id": f"i{ident}", "task": task, "value": value, "ts_ms": ts_s * 1000}


def one_shard(folder: Path, watermarks: Watermarks | None = None) -> Shard:
    core = Shard(0, SETTINGS, folder, watermarks or Watermarks(sources(1, 1)))
    core.clear()
    return core


def placed(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """A table of rows of partition 0, at offsets from 0 on."""
    places = [{"partition": 0, "offset": n, "index": 0} for n in range(len(rows))]
    return pa.Table.from_pylist([r | p for r, p in zip(rows, places, strict=True)], schema)


def impressions(*rows: Row) -> pa.Table:
    return placed(list(rows), impression_schema(SETTINGS))


def pass_time(core: Shard, ts_s: int, now_s: float = 0.0) -> list[Row]:
    """Examples that leave when all inputs have come to `ts_s`."""
    for source in sources(1, 1):
        core.take_watermark(source, ts_s * 1000)
    return [row for message, _ in core.advance(now_s) for row in decode(message)[0].to_pylist()]


def count(metric: Any, *labels: str) -> float:
    child = metric.labels(*labels) if labels else metric
    return float(child._value.get())


def label_counts() -> list[float]:
    """Labels in no window of an impression, and repeated ones."""
    return [count(DAS_UNMATCHED, "labels"), count(DAS_REPEATS, "labels")]


def test_damaged_segment_stops_with_its_name(tmp_path: Path) -> None:
    core = one_shard(tmp_path)
    core.take_rows("impressions", impressions(impression(1, 100)))
    state = core.save()
    one_shard(tmp_path / "elsewhere")
    path = tmp_path / "0" / state["stores"]["impressions"]["files"][0]["name"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SegmentError, match=f"{path.name} is damaged"):
        core.restore(state)
    path.unlink()
    with pytest.raises(SegmentError, match=f"{path.name} cannot be read"):
        core.restore(state)


def test_what_closes_within_an_epoch_never_touches_the_disk(tmp_path: Path) -> None:
    core = one_shard(tmp_path)
    core.take_rows("impressions", impressions(impression(1, 100)))
    assert len(pass_time(core, 10_000)) == 2
    core.save()
    assert list(tmp_path.rglob("*.arrow")) == []


def test_files_stay_few(tmp_path: Path) -> None:
    core, largest = one_shard(tmp_path), 0
    for n in range(300):
        core.take_rows("impressions", impressions(impression(n, n)))
        pass_time(core, n)
        state = core.save()
        largest = max(largest, len(pickle.dumps(state)))
    named = [f for s in state["stores"].values() for f in s["files"]]
    assert len(named) < 20
    assert len(list(tmp_path.rglob("*.arrow"))) < 40
    assert largest < 4000


def test_labels_without_a_place_are_counted(tmp_path: Path) -> None:
    core = one_shard(tmp_path)
    before = label_counts()
    core.take_rows("impressions", impressions(impression(1, 100)))
    found = label(1, 101, 0, 1), label(1, 102, 0, 0), label(1, 111, 0, 1), label(7, 101, 0, 1)
    core.take_rows("labels", placed(list(found), ARRIVING))
    rows = pass_time(core, 10_000)
    assert [row["label_click"] for row in rows] == [1, 0]
    assert [now - then for now, then in zip(label_counts(), before, strict=True)] == [2, 1]


@pytest.mark.parametrize("few", [0, 1_000_000])
def test_labels_of_few_examples_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(label_join, "FEW", few)
    core = one_shard(tmp_path)
    core.take_rows("impressions", impressions(*(impression(n, 100 + n) for n in range(40))))
    found = [label(n, 101 + n, 0, n % 2) for n in range(0, 40, 3)]
    core.take_rows("labels", placed([*found, label(99, 101, 0, 1)], ARRIVING))
    rows = [row for ts_s in range(100, 300) for row in pass_time(core, ts_s)]
    clicks = [int(r["impression_id"][1:]) for r in rows if r["label_click"] and r["mask_click"]]
    assert (len(rows), clicks) == (80, [3, 9, 15, 21, 27, 33, 39])


def test_stragglers_get_the_examples_that_are_still_open(tmp_path: Path) -> None:
    core = one_shard(tmp_path, PatientWatermarks(sources(1, 1), 1.0))
    before = count(DAS_TOO_LATE, "impressions")
    assert pass_time(core, 1000) == []
    late = impression(1, 980), impression(2, 900), impression(1, 985)
    core.take_rows("impressions", impressions(*late))
    assert count(DAS_TOO_LATE, "impressions") - before == 3  # a short window, and all of 2
    rows = pass_time(core, 2000)
    assert [(r["impression_id"], r["closed_ts_ms"]) for r in rows] == [("i1", 1_040_000)]


@pytest.mark.parametrize(("closed_s", "versions"), [(120, [None]), (500, [None, None])])
def test_teacher_that_comes_too_late_is_counted(
    tmp_path: Path, closed_s: int, versions: list[None]
) -> None:
    """Also if only the shorter window has closed; of a prediction that comes again, once."""
    core = one_shard(tmp_path, PatientWatermarks(sources(1, 1), 1.0))
    before = count(DAS_TOO_LATE, "predictions")
    core.take_rows("impressions", impressions(impression(1, 100)))
    for source in (("impressions", 0), ("labels", 0)):
        core.take_watermark(source, closed_s * 1000)
    assert core.advance(0.0) == []
    ((message, _),) = core.advance(1.5)
    assert decode(message)[0]["fm_version"].to_pylist() == versions
    row = {"impression_id": "i1", "ts_ms": 100_000, "fm_version": 1}
    for _ in range(2 if closed_s == 120 else 1):
        core.take_rows("predictions", placed([row], prediction_schema(SETTINGS)))
    assert count(DAS_TOO_LATE, "predictions") - before == 1


def test_segment_without_room_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    core = one_shard(tmp_path)
    (tmp_path / "0").write_bytes(b"a file where the folder should be")
    core.take_rows("impressions", impressions(impression(1, 100)))
    with pytest.raises(StateFull, match=r"impressions-0.*arrow cannot be written: .* make room"):
        core.save()


def test_rows_spill_shortly_before_a_snapshot(tmp_path: Path) -> None:
    core, every_s = one_shard(tmp_path), SETTINGS.das.recovery_every_s

    def written(number: int, now_s: float) -> int:
        """Files of impressions, a moment behind one more impression."""
        core.take_rows("impressions", impressions(impression(number, 100)))
        pass_time(core, number, now_s)
        wait_for_writes()
        return len(list(tmp_path.rglob("impressions-*.arrow")))

    begin_s = 100.0
    assert written(1, begin_s) == 0
    assert written(2, begin_s + 0.7 * every_s) == 0
    assert written(3, begin_s + 0.8 * every_s) == 1  # also before the first snapshot
    assert written(4, begin_s + 0.9 * every_s) == 1
    core.save()  # writes what came since
    assert written(5, begin_s + 1.6 * every_s) == 2
    assert written(6, begin_s + 1.7 * every_s) == 3
    assert written(7, begin_s + 1.8 * every_s) == 3
    assert written(8, begin_s + 1.9 * every_s) == 4
    files = core.save()["stores"]["impressions"]["files"]
    assert len(files) == 4  # nothing came behind the last spill
