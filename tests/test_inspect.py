"""What `exfm das inspect` says of a join: live, and from the folder of one that has stopped."""

from __future__ import annotations

import json
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main
from prometheus_client import REGISTRY, generate_latest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.config_file import dump
from flows.das import build
from flows.join.inspection import (
    Inspection,
    ShardView,
    from_metrics,
    from_state,
    inspect,
    live_metrics,
)
from flows.join.read_ahead import ReadAhead
from flows.join.recovery import JOIN_STEP, RecoveryUnreadable, SavedShard, saved_shards, state_of
from flows.join.seal import sealed
from flows.join.shard import Shard
from flows.join.state import recovery_folder, shards_folder
from flows.join.watermarks import WAITED_FOR, PatientWatermarks, Watermarks, sources
from flows.kafka.producer import BatchProducer
from flows.records import ADDRESS, BEGIN_MS, END_MS, impression_schema
from flows.report.scrape import Sample, parse
from flows.run_folder import RunFolder, write_json
from flows.runner import create_recovery_store
from flows.settings import Settings
from monitoring import exporter
from tests.processes import tethered

ROOT = Path(__file__).resolve().parents[1]
START_MS = 1_700_000_000_000
SHARD = 4001
"""No other test has it in this process's metrics."""


def eventually(look: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


def impressions(settings: Settings, *seconds: float) -> pa.Table:
    rows = [
        {
            **dict.fromkeys(impression_schema(settings).names),
            "impression_id": f"i{n}",
            "domain": "feed",
            "ts_ms": START_MS + round(1000 * at_s),
            **{field.name: n for field in ADDRESS},
        }
        for n, at_s in enumerate(seconds)
    ]
    return pa.Table.from_pylist(rows, impression_schema(settings))


def test_least_input_that_is_waited_for_is_what_a_live_shard_closes_by() -> None:
    rng, compared = random.Random(5), 0
    for _ in range(200):
        names = sources(2, 2)
        watermarks = PatientWatermarks(names, grace_s=3.0)
        done_ms = BEGIN_MS
        for now_s in range(20):
            for source in rng.sample(names, 3):
                if rng.random() < 0.3 and source[0] != "fm":
                    watermarks.idle(source)
                else:
                    ts_ms = END_MS if rng.random() < 0.02 else rng.randint(0, 100) * now_s
                    watermarks.advance(source, ts_ms)
            found_ms = watermarks.minimum(done_ms, float(now_s))
            waited = [
                ts_ms
                for source, ts_ms in watermarks.values.items()
                if watermarks.standing(source, done_ms) == WAITED_FOR
            ]
            if waited:
                compared += 1
                least_ms = min(waited)
                events = [s for s in names if s[0] != "fm"]
                counted = [s for s in events if watermarks.standing(s, done_ms) == WAITED_FOR]
                assert found_ms == least_ms or not counted
            done_ms = max(done_ms, found_ms)
    assert compared > 1000


def one_shard(settings: Settings, folder: Path, watermarks: Watermarks) -> Shard:
    """A shard with impressions of 0, 70 and 75 s, event time 72 s, and a silent teacher."""
    core = Shard(SHARD, settings, folder, watermarks)
    core.clear()
    core.take_rows("impressions", impressions(settings, 0, 70, 75))
    for source in sources(2, 1):
        if source != ("fm", 1):
            core.take_watermark(source, START_MS + 72_000 + 1000 * source[1])
    core.take_watermark(("fm", 1), START_MS + 65_000)
    core.advance(0.0)
    return core


def of_metrics() -> ShardView:
    text = generate_latest(REGISTRY).decode()
    return from_metrics(Sample(at_s=0.0, values={"das": parse(text)}))[SHARD]


def test_metrics_and_state_say_the_same(tiny_settings: Settings, tmp_path: Path) -> None:
    core = one_shard(tiny_settings, tmp_path, Watermarks(sources(2, 1)))
    state = core.save()
    live = of_metrics()
    saved = SavedShard(saved_at="then", state=state)
    stored = from_state(saved, tmp_path / str(SHARD))
    for view in (live, stored):
        assert view.holder is not None
        assert (view.holder.name, view.holder.watermark_ms) == ("fm/1", START_MS + 65_000)
        assert (view.closed_ms, view.pending) == (START_MS + 65_000, 2)  # that of 0 s is closed
        assert (view.oldest_ms, view.newest_ms) == (START_MS + 70_000, START_MS + 73_000)
        assert view.oldest_age_s == 3.0
        names = [found.name for found in view.inputs]
        assert names == ["fm/0", "fm/1", "impressions/0", "impressions/1", "labels/0"]
    assert (live.inputs, live.saved_at, stored.saved_at) == (stored.inputs, None, "then")
    for source in sources(2, 1):
        core.take_watermark(source, END_MS)
    core.advance(1.5)
    state = core.save()
    for view in (of_metrics(), from_state(SavedShard(saved_at="", state=state), tmp_path)):
        assert (view.ended, view.holder, view.pending, view.oldest_age_s) == (True, None, 0, None)


def test_input_that_is_left_out_is_told_with_its_reason(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    core = one_shard(tiny_settings, tmp_path, PatientWatermarks(sources(2, 1), grace_s=10.0))
    core.take_standing("idle", ("labels", 0))
    core.advance(20.0)
    core.advance(40.0)
    core.save()
    view = of_metrics()
    standing = {found.name: found.standing for found in view.inputs}
    assert standing["fm/1"] == "silent"
    assert standing["labels/0"] == "idle"
    assert view.holder is not None
    assert view.holder.name in ("impressions/0", "fm/0")
    assert view.closed_ms == START_MS + 72_000


@pytest.fixture
def stopped(tiny_settings: Settings, tmp_path: Path) -> RunFolder:
    """A run of two shards that stopped while one of them waited for the teacher."""
    folder = RunFolder(tmp_path / "run")
    state = folder.state / "das"
    recovery_folder(state).mkdir(parents=True)
    init_db_dir(recovery_folder(state), 2)
    folder.config.write_text(dump(tiny_settings))
    items: list[Any] = [
        ("1", ("rows", 1, "impressions", impressions(tiny_settings, 0, 30))),
        *(("1", ("watermark", 1, s, START_MS + 20_000)) for s in sources(2, 2) if s != ("fm", 0)),
        ("1", ("watermark", 1, ("fm", 0), START_MS + 12_000)),
    ]
    ahead, sink = ReadAhead(tiny_settings), TestingSink[Any]([])
    flow = build(tiny_settings, state, [TestingSource(items)], sink, ahead)
    config = RecoveryConfig(recovery_folder(state), timedelta(0))
    run_main(flow, epoch_interval=timedelta(0), recovery_config=config)
    return folder


def test_stopped_join_is_read_from_its_folder(stopped: RunFolder, tiny_settings: Settings) -> None:
    found = inspect(tiny_settings, stopped)
    assert (found.live, found.num_shards) == ((), 2)
    (view,) = found.shards
    assert view.holder is not None
    assert (view.shard, view.holder.name, view.pending) == (1, "fm/0", 2)
    assert (view.closed_ms, view.oldest_ms) == (START_MS + 12_000, START_MS)
    files = list(shards_folder(stopped.state / "das").glob("1/*.arrow"))
    kinds = {store.kind: store for store in found.stores}
    assert sum(store.segments for store in found.stores) == len(files)
    assert sum(store.num_bytes for store in found.stores) == sum(p.stat().st_size for p in files)
    assert kinds["impressions"].segments >= 1
    recovery = recovery_folder(stopped.state / "das")
    assert found.recovery_bytes == sum(p.stat().st_size for p in recovery.iterdir()) > 0
    done = look(stopped)
    assert done.exit_code == 0, done.output
    for words in (
        "no process answers",
        "fm/0",
        "holds the shard back",
        "1 of 2 shards",
        "recovery",
    ):
        assert words in done.output


def look(folder: RunFolder, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["das", "inspect", f"--run={folder.root}", *arguments])


def test_figures_are_there_for_programs(stopped: RunFolder) -> None:
    (shard,) = json.loads(look(stopped, "--json").stdout)["shards"]
    assert (shard["pending"], shard["closed_ms"]) == (2, START_MS + 12_000)
    wrong = look(stopped, "--shard=2")
    assert (wrong.exit_code, "--shard 2 must be below das.shards = 2" in wrong.stderr) == (2, True)
    assert inputs_of(look(stopped, "--shard=0").output) == []
    assert len(inputs_of(look(stopped, "--shard=1").output)) == 6


def inputs_of(output: str) -> list[str]:
    table = output.partition("Inputs")[2].partition("On disk")[0]
    return [line for line in table.splitlines() if "/" in line]


@pytest.mark.parametrize(
    ("harm", "why", "sizes_tell"),
    [
        (lambda path: path.unlink(), "is gone", True),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes", True),
        (lambda path: path.write_bytes(b""), "has 0 bytes", True),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "xxh64", False),
    ],
)
def test_segment_that_nothing_could_go_on_from_is_named(
    stopped: RunFolder,
    tiny_settings: Settings,
    harm: Callable[[Path], object],
    why: str,
    sizes_tell: bool,
) -> None:
    assert look(stopped, "--checksums").exit_code == 0
    path = sorted(shards_folder(stopped.state / "das").glob("1/impressions-*.arrow"))[0]
    harm(path)
    assert bool(inspect(tiny_settings, stopped).damaged) == sizes_tell
    (wrong,) = inspect(tiny_settings, stopped, checksums=True).damaged
    assert str(path) in wrong
    assert why in wrong
    done = look(stopped, "--checksums")
    assert (done.exit_code, "1 files of the state are gone or damaged; put" in done.stderr) == (
        1,
        True,
    )
    assert path.name in done.stdout
    assert json.loads(look(stopped, "--json", "--checksums").stdout)["damaged"] == [wrong]


def test_damaged_recovery_store_is_named(stopped: RunFolder, tiny_settings: Settings) -> None:
    path = sorted(recovery_folder(stopped.state / "das").glob("*.sqlite3"))[0]
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(RecoveryUnreadable, match=path.name):
        inspect(tiny_settings, stopped)


def test_only_plain_data_are_read_from_a_recovery_store(tmp_path: Path) -> None:
    state = {"done_ms": 1}
    assert state_of(tmp_path, "0", pickle.dumps(sealed(state))) == state
    for data, why in (
        (pickle.dumps(Path()), "no plain data"),
        (pickle.dumps(sealed({"done_ms": Path()})), "no plain data"),
        (pickle.dumps(state), "another version"),
        (pickle.dumps([]), "another version"),
        (pickle.dumps({**sealed(state), "xxh64": "0"}), "that of what was saved 0"),
        (b"", "Ran out of input"),
    ):
        with pytest.raises(RecoveryUnreadable, match=f"shard 0 is damaged: .*{why}"):
            state_of(tmp_path, "0", data)


def test_snapshots_that_were_not_committed_do_not_count(tmp_path: Path) -> None:
    recovery = tmp_path / "recovery"
    create_recovery_store(recovery)
    stores = [sqlite3.connect(path) for path in sorted(recovery.glob("*.sqlite3"))]
    for epoch in (3, 4, 5):
        data = pickle.dumps(sealed({"done_ms": epoch}))
        row = (JOIN_STEP, "0.76", epoch, data)
        stores[epoch % 2].execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)",
            row,
        )
    stores[1].execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 2, 1)")
    stores[1].execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (1, 2, 4)")
    found = []
    for store, worker in ((None, 0), (stores[0], 0), (stores[1], 1)):
        if store is not None:
            values = (1, worker, 5 + worker)
            store.execute(
                "INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (?, ?, ?)",
                values,
            )
        for each in stores:
            each.commit()
        ((_, saved),) = saved_shards(recovery).items()
        found.append(saved.state["done_ms"])
    for each in stores:
        each.close()
    assert found == [3, 3, 4]  # both workers must have come as far


def test_run_that_never_began_has_nothing(tiny_settings: Settings, tmp_path: Path) -> None:
    nothing = Inspection(live=(), shards=(), num_shards=2, stores=(), recovery_bytes=0)
    assert inspect(tiny_settings, RunFolder(tmp_path)) == nothing
    assert saved_shards(tmp_path) == {}


def test_process_that_ended_is_not_live(tmp_path: Path) -> None:
    port = exporter.start()
    path, entry = exporter.address(tmp_path, "das", "127.0.0.1", port)
    write_json(path, entry)
    assert list(live_metrics(tmp_path).values) == ["das"]
    path.with_name(f"das.{entry['pid']}.prom").write_text("")
    assert list(live_metrics(tmp_path).values) == []


@contextmanager
def process(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flows.cli", "run", "das", f"--run={folder.root}"]
    with subprocess.Popen(tethered(command), cwd=ROOT) as das:
        try:
            yield das
        finally:
            das.kill()


@pytest.mark.kafka
def test_running_join_says_that_the_teacher_holds_it_back(
    kafka_settings: Settings, producer: BatchProducer, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(kafka_settings))
    topics = kafka_settings.topics
    for at in range(40):
        event = {"impression_id": f"i{at}", "domain": "feed", "ts_ms": START_MS + 1000 * at}
        producer.send(topics.impressions.name, json.dumps(event).encode(), partition=at % 2)
        label = {"impression_id": f"i{at}", "task": "click", "value": 1}
        label["ts_ms"] = START_MS + 1000 * at
        producer.send(topics.labels.name, json.dumps(label).encode(), partition=at % 2)
    producer.flush()

    def told(live: bool) -> bool:
        found = inspect(kafka_settings, folder)
        holders = {view.holder.name for view in found.shards if view.holder is not None}
        return (
            bool(found.live) == live
            and sum(view.pending for view in found.shards) == 40
            and all((view.saved_at is None) == live for view in found.shards)
            and holders <= {"fm/0", "fm/1"}
            and min((v.oldest_ms or 0 for v in found.shards), default=0) == START_MS
        )

    with process(folder) as das:
        eventually(lambda: told(live=True))
        assert "of which nothing was read" in look(folder).output
        das.send_signal(signal.SIGTERM)
        das.wait(30)
    assert told(live=False)
