"""Tasks that are early, conditional or corrected, case by case: rows, counts, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.join.label_join import ARRIVING
from flows.join.shard import Shard
from flows.join.watermarks import PatientWatermarks, Watermarks, sources
from flows.records import END_MS, decode, impression_schema
from flows.settings import Settings
from monitoring.metrics import (
    DAS_CORRECTING,
    DAS_CORRECTIONS,
    DAS_EARLY,
    DAS_KNOWN_NEGATIVES,
    DAS_REPEATS,
    DAS_TOO_LATE,
    DAS_UNMATCHED,
)
from tests.test_shard_cases import count, impression, label, placed

Row = dict[str, Any]
BUY = {"name": "buy", "window_s": 60}
CLICK = {"name": "click", "window_s": 10}


def settings(click: Row, buy: Row) -> Settings:
    """Two tasks with policies."""
    topic = {"name": "t", "partitions": 1}
    return Settings.model_validate(
        {
            "domains": ["feed"],
            "features": [{"name": "item", "kind": "categorical"}],
            "tasks": [{**CLICK, **click}, {**BUY, **buy}],
            "students": [{"name": "late", "tasks": ["click"]}],
            "topics": {"impressions": topic, "labels": {**topic, "name": "l"}},
            "das": {"shards": 1, "correction_horizon_s": 30},
        }
    )


class Join:
    """One shard, and the records that it was given."""

    def __init__(
        self, folder: Path, config: Settings, watermarks: Watermarks | None = None
    ) -> None:
        self.config, self.offset = config, 0
        self.core = Shard(0, config, folder, watermarks or Watermarks(sources(1, 1)))
        self.core.clear()

    def take(self, kind: str, *rows: Row) -> None:
        """Give impressions or labels."""
        schema = impression_schema(self.config) if kind == "impressions" else ARRIVING
        table = placed(list(rows), schema)
        offsets = [self.offset + n for n in range(len(rows))]
        self.offset += len(rows)
        at = schema.get_field_index("offset")
        self.core.take_rows(kind, table.set_column(at, schema.field(at), [offsets]))

    def until(self, ts_s: float) -> list[tuple[str, int, int | None, int | None, int]]:
        """(id, closed, click, buy, correction) of what leaves; None: masked."""
        for source in sources(1, 1):
            self.core.take_watermark(source, min(round(ts_s * 1000), END_MS))
        rows = [r for m, _ in self.core.advance(0.0) for r in decode(m)[0].to_pylist()]
        return [
            (
                r["impression_id"],
                r["closed_ts_ms"] // 1000,
                *(r[f"label_{n}"] if r[f"mask_{n}"] else None for n in ("click", "buy")),
                r["correction"],
            )
            for r in rows
        ]


def label_counts() -> list[float]:
    """Labels unmatched, repeated, correcting, and behind everything."""
    return [
        count(DAS_UNMATCHED, "labels"),
        count(DAS_REPEATS, "labels"),
        count(DAS_CORRECTING, "buy"),
        count(DAS_TOO_LATE, "labels"),
    ]


def test_early_positive_leaves_with_its_label_and_only_then(tmp_path: Path) -> None:
    join = Join(tmp_path, settings({"early": True}, {}))
    before = count(DAS_EARLY, "click")
    join.take("impressions", impression(1, 100), impression(2, 100))
    join.take("labels", label(1, 103, 0, 1), label(2, 104, 0, 0))
    assert join.until(104) == [("i1", 103, 1, None, 0)]
    assert join.until(200) == [
        ("i2", 110, 0, None, 0),
        ("i1", 160, None, 0, 0),
        ("i2", 160, None, 0, 0),
    ]
    assert count(DAS_EARLY, "click") - before == 1


def test_row_without_any_task_is_not_emitted(tmp_path: Path) -> None:
    join = Join(tmp_path, settings({}, {"given": "click"}))
    before = count(DAS_KNOWN_NEGATIVES, "buy"), count(DAS_UNMATCHED, "labels")
    join.take("impressions", impression(1, 100), impression(2, 100))
    join.take("labels", label(1, 103, 0, 1), label(1, 150, 1, 1), label(2, 104, 1, 1))
    assert join.until(1e15) == [
        ("i1", 110, 1, None, 0),
        ("i2", 110, 0, 0, 0),  # known negative; its conversion without a click does not count
        ("i1", 160, None, 1, 0),
    ]
    assert count(DAS_KNOWN_NEGATIVES, "buy") - before[0] == 1
    assert count(DAS_UNMATCHED, "labels") - before[1] == 1


def test_early_conversion_waits_for_its_click(tmp_path: Path) -> None:
    join = Join(tmp_path, settings({}, {"given": "click", "early": True}))
    join.take("impressions", impression(1, 100), impression(2, 100))
    join.take("labels", label(1, 102, 1, 1), label(1, 105, 0, 1))
    join.take("labels", label(2, 102, 0, 1), label(2, 130, 1, 1))
    assert join.until(1e15) == [
        ("i1", 105, None, 1, 0),
        ("i1", 110, 1, None, 0),
        ("i2", 110, 1, None, 0),
        ("i2", 130, None, 1, 0),
    ]


def test_late_labels_correct_within_the_horizon(tmp_path: Path) -> None:
    join = Join(tmp_path, settings({"late_labels": "correct"}, {"window_s": 20}))
    before = count(DAS_CORRECTIONS, "click"), count(DAS_CORRECTING, "click")
    unmatched = count(DAS_UNMATCHED, "labels")
    join.take("impressions", impression(1, 100))
    join.take("labels", label(1, 111, 0, 1), label(1, 115, 0, 1), label(1, 139, 0, 0))
    join.take("labels", label(1, 140, 0, 1))  # beyond the horizon
    assert join.until(1e15) == [
        ("i1", 110, 0, None, 0),
        ("i1", 111, 1, None, 1),
        ("i1", 120, None, 0, 0),
        ("i1", 139, 0, None, 2),
    ]
    assert count(DAS_CORRECTIONS, "click") - before[0] == 2
    assert count(DAS_CORRECTING, "click") - before[1] == 3
    assert count(DAS_UNMATCHED, "labels") - unmatched == 1


def test_repeated_labels_correct_an_early_positive(tmp_path: Path) -> None:
    join = Join(tmp_path, settings({}, {"early": True, "repeated_labels": "correct"}))
    join.take("impressions", impression(1, 100), impression(2, 100))
    join.take("labels", label(1, 120, 1, 1), label(1, 130, 1, 0), label(1, 140, 1, 1))
    join.take("labels", label(2, 120, 1, 0), label(2, 130, 1, 1), label(2, 140, 1, 1))
    assert [r for r in join.until(1e15) if r[3] is not None] == [
        ("i1", 120, None, 1, 0),
        ("i1", 130, None, 0, 1),
        ("i2", 130, None, 1, 0),
        ("i1", 140, None, 1, 2),
    ]


@pytest.mark.parametrize(("policy", "kept_s"), [("drop", 60), ("correct", 90)])
def test_impressions_are_kept_as_long_as_a_row_may_come(
    tmp_path: Path, policy: str, kept_s: int
) -> None:
    join = Join(tmp_path, settings({}, {"late_labels": policy}))
    join.take("impressions", impression(1, 100))
    join.until(100 + kept_s)
    assert join.core.save()["stores"]["impressions"]["files"]
    join.until(101 + kept_s)
    state = join.core.save()
    assert not state["stores"]["impressions"]["files"]
    assert state["pending"] == 0


def test_stragglers_lead_to_no_second_example_and_are_counted(tmp_path: Path) -> None:
    config = settings({"early": True}, {"late_labels": "correct"})
    join = Join(tmp_path, config, PatientWatermarks(sources(1, 1), 1.0))
    before = label_counts()
    join.take("impressions", impression(1, 100), impression(2, 104))
    join.take("labels", label(1, 103, 0, 1))
    assert join.until(106) == [("i1", 103, 1, None, 0)]
    join.take("labels", label(1, 101, 0, 1), label(2, 105, 0, 1), label(9, 105, 0, 1))
    assert join.until(112) == [("i2", 106, 1, None, 0)]  # known only then
    join.take("labels", label(1, 104, 0, 0), label(1, 104, 1, 1))
    join.take("impressions", impression(3, 103))
    join.take("labels", label(3, 104, 0, 1))
    assert join.until(114) == [("i3", 112, 1, None, 0)]
    join.core.restore(join.core.save())
    assert join.until(162) == [("i1", 160, None, 1, 0)]
    join.take("labels", label(1, 150, 1, 0))  # its window has closed meanwhile
    assert join.until(163) == [("i1", 162, None, 0, 1)]
    assert join.until(1e15) == [("i3", 163, None, 0, 0), ("i2", 164, None, 0, 0)]
    join.take("labels", label(1, 105, 0, 1))
    # Nine labels: four became examples; of impression 9, and behind a window; repeated; a
    # correction; and what came when all was over.
    assert [now - then for now, then in zip(label_counts(), before, strict=True)] == [2, 1, 1, 1]


POLICIES = [
    ({}, {}),
    ({"late_labels": "correct"}, {}),
    ({"early": True}, {"given": "click", "early": True, "late_labels": "correct"}),
]


@pytest.mark.parametrize(("click", "buy"), POLICIES)
def test_counts_of_labels_do_not_depend_on_the_steps(tmp_path: Path, click: Row, buy: Row) -> None:
    counts = []
    for step_s in (1, 7, 500):
        join = Join(tmp_path / str(step_s), settings(click, buy))
        before = label_counts()
        join.take("impressions", impression(1, 100), impression(2, 130))
        clicks = [label(1, ts_s, 0, 1) for ts_s in (96, 101, 105, 113, 139, 150)]
        buys = [label(2, ts_s, 1, 1) for ts_s in (129, 131, 150, 195, 225)]
        join.take("labels", *clicks, *buys, label(9, 120, 0, 1))
        for ts_s in range(90, 500, step_s):
            join.until(ts_s)
        join.until(500)
        counts.append([now - then for now, then in zip(label_counts(), before, strict=True)])
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0][:3]) > 0
