"""The benchmark of the join: its own flow over files does what a plain join does."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.das import bench, kafka, ours
from benchmarks.das import files as files_part
from benchmarks.das.engine import EngineFailed, Outcome, run, run_engine
from benchmarks.das.events import EventFiles, event_files, settings
from benchmarks.das.figures import Figure, at_least, at_most, unmeasured
from benchmarks.das.job import WINDOW_S, counts, tree_cpu_s
from benchmarks.das.kafka import Rate
from benchmarks.das.kafka_job import Look
from benchmarks.das.picture import picture
from flows.join.read_ahead import ReadAhead

ROWS = 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EventFiles:
    return event_files(ROWS, tmp_path_factory.mktemp("events"))


def reference(files: EventFiles) -> pl.DataFrame:
    """Examples by two joins of whole tables."""
    labels = pl.read_ndjson(files.labels).select("impression_id", label_ms="ts_ms")
    logits = pl.read_ndjson(files.predictions).select("impression_id", "fm_logit_click")
    shown = pl.read_ndjson(files.impressions).join(labels, on="impression_id", how="left")
    delay_ms = pl.col("label_ms") - pl.col("ts_ms")
    inside = (delay_ms >= 0) & (delay_ms < WINDOW_S * 1000)
    return (
        shown.with_columns(label_click=inside.fill_null(False).cast(pl.Int8))
        .join(logits, on="impression_id", how="left")
        .drop("label_ms")
        .sort("impression_id")
    )


def test_examples_of_files_equal_a_join_of_whole_tables(files: EventFiles, tmp_path: Path) -> None:
    found = ours.examples(ours.join(files, settings(), tmp_path))
    wanted = reference(files)
    frame = pl.DataFrame(pl.from_arrow(found)).sort("impression_id")
    assert frame.height == ROWS
    for name in wanted.columns:
        same = frame[name].cast(wanted[name].dtype)
        if wanted[name].dtype == pl.Float64:
            assert np.allclose(same.to_numpy(), wanted[name].to_numpy(), rtol=1e-6), name
        else:
            assert same.equals(wanted[name]), name
    assert wanted["label_click"].sum() == files.num_positives


def test_same_rows_give_the_same_bytes(files: EventFiles, tmp_path: Path) -> None:
    again = event_files(ROWS, tmp_path)
    for kind in ("impressions", "predictions", "labels"):
        assert getattr(again, kind).read_bytes() == getattr(files, kind).read_bytes()
    assert 0 < files.num_positives < files.num_labels


def test_a_file_out_of_order_is_refused(files: EventFiles, tmp_path: Path) -> None:
    lines = files.labels.read_bytes().splitlines(keepends=True)
    swapped = tmp_path / "labels.jsonl"
    swapped.write_bytes(b"".join(reversed(lines)))
    partition = ours.FilePartition(settings(), "labels", swapped, ReadAhead(settings()))
    partition.next_batch()  # wakes the shard, and reads nothing
    with pytest.raises(RuntimeError, match="order of event time"):
        partition.next_batch()
    partition.close()


def test_a_job_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    begun_s = time.monotonic()
    with pytest.raises(EngineFailed, match="not finished within 1 s"):
        run([sys.executable, "-c", f"import time; {code}; time.sleep(60)"], limit_s=1)
    assert time.monotonic() - begun_s < 30


def test_a_job_that_fails_shows_its_last_words() -> None:
    with pytest.raises(EngineFailed, match="exit code 3: sad"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('sad'); sys.exit(3)"], limit_s=60)
    with pytest.raises(EngineFailed, match="no outcome"):
        run_engine([sys.executable, "-c", "print('{}')"], limit_s=60)


def test_a_failed_part_is_an_unmet_figure(tmp_path: Path) -> None:
    (figure,) = bench.figures_of("no_such_part", 1000, tmp_path, 60)
    assert figure.met is False
    assert "exit code 1" in figure.note
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_killed_leaves_no_scratch(tmp_path: Path) -> None:
    begun, work = tmp_path / "begun", tmp_path / "work"
    work.mkdir()
    code = (
        "import os, pathlib, tempfile\n"
        "folder = tempfile.mkdtemp()\n"
        "pathlib.Path(folder, 'file').touch()\n"
        f"pathlib.Path({str(begun)!r}).write_text(folder)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert bench.run_apart([sys.executable, "-c", code], work, limit_s=60) == -9
    assert work in Path(begun.read_text()).parents
    assert list(work.iterdir()) == []


def test_counts_of_a_peer_and_cpu_seconds(tmp_path: Path) -> None:
    path = tmp_path / "part-0"
    rows = [{"label": 1, "fm_logit_click": 0.5}, {"label": 0, "fm_logit_click": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert counts([path]) == (2, 1, 1)
    assert 0 < tree_cpu_s() < 1e6


def test_files_part_shows_who_failed_and_who_differs(files: EventFiles) -> None:
    def outcome(seconds: float, positives: int) -> Outcome:
        found = {"examples": ROWS, "positives": positives, "predicted": ROWS}
        return Outcome(seconds=seconds, cpu_s=seconds, **found)

    best = {
        "exfm": outcome(1.0, files.num_positives),
        "decoding alone": outcome(0.5, files.num_positives),
        "Flink SQL": outcome(7.0, files.num_positives - 1),
    }
    failed = {"Pathway": "not installed", "Bytewax join_window": "not finished within 150 s"}
    found = {figure.name: figure for figure in files_part.figures(files, best, failed)}
    assert found["files: exfm"].value == files.num_events
    assert found["files: exfm over Flink SQL"].value == pytest.approx(7)
    assert found["files: exfm over Pathway"].met is False
    assert found["files: exfm of its decoding alone"].value == pytest.approx(50)
    agreed = found["files: engines with the same examples, positives, predictions"]
    assert agreed.met is False
    assert "Flink SQL" in agreed.note


def test_the_cost_of_recovery_takes_snapshots_to_tell() -> None:
    def rate(events_s: float, snapshots: float) -> Rate:
        return Rate(
            events_s=events_s,
            events_cpu_s=events_s,
            busiest_cpu_s=1.0,
            pending=1.0,
            snapshots=snapshots,
            snapshots_s=0.5,
            num_events=1.0,
            whole_events_s=1.0,
            started_events_s=1.0,
        )

    unsaved = rate(100.0, 0)
    assert kafka.lost(rate(95.0, 7), unsaved, 10.0).value == pytest.approx(5)
    assert kafka.lost(rate(85.0, 7), unsaved, 10.0).met is False
    few = kafka.lost(rate(95.0, 2.75), unsaved, 10.0)
    assert few.value is None
    assert few.met is False


def test_a_process_works_from_its_own_first_event_on() -> None:
    def look(at_s: float, cpu_s: tuple[float, ...], events_of: tuple[float, ...]) -> Look:
        return Look(
            at_s=at_s,
            cpu_s=cpu_s,
            events=sum(events_of),
            events_of=events_of,
            closed=0.0,
            pending=0.0,
            snapshots=0.0,
            snapshot_s=0.0,
        )

    looks = [
        look(0.0, (1.0, 0.5), (0.0, 0.0)),
        look(1.0, (2.0, 1.5), (7.0, 0.0)),
        look(2.0, (3.0, 2.5), (9.0, 5.0)),
    ]
    assert [kafka.working_cpu_s(looks, of) for of in (0, 1)] == [2.0, 1.0]


def test_figures_table_summary_and_picture() -> None:
    rate = Figure(name="rate", value=1e5, unit="events/s", drawn_as="files: exfm")
    slow = Figure(name="slow", value=10.0, unit="events/s", drawn_as="files: <peer>")
    figures = [rate, slow, at_least("ratio", 7, "x", 6), at_most("memory", 2, "x", 1.3)]
    figures.append(unmeasured("peer", "x", "not installed", bar=">= 6"))
    assert [figure.met for figure in figures] == [None, None, True, False, False]
    document = bench.summary(figures, 1000, 2.0)
    assert document["met"] is False
    assert [Figure(**found) for found in document["figures"]] == figures
    drawn = picture(figures)
    assert "100,000" in drawn
    assert "&lt;peer&gt;" in drawn
    assert bench.table(figures).row_count == len(figures)
