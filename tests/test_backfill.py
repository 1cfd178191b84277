"""Backfills over a real Kafka: what the join wrote, again, whole or in part, killed or not."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from flows.backfill.backfill import backfill, own_state
from flows.backfill.course import BackfillAhead, Course
from flows.backfill.plan import INPUTS, BackfillRefused, Plan, Request, Span, parsed_offsets, plan
from flows.backfill.result import Result
from flows.backfill.sources import bounded_sources
from flows.backfill.targets import MANIFEST, ParquetTarget, Target, TopicTarget, Watch
from flows.commands.backfill import other
from flows.config_file import dump
from flows.das import run
from flows.join.recovery import JOIN_STEP, SAVED, RecoveryUnreadable, StateFull, rows
from flows.kafka.client import client_config
from flows.learning.example_reader import ExampleReader, Place
from flows.records import BEGIN_MS, END_MS, example_schema
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings, SettingsError, Topic
from tests.processes import tethered
from tests.test_das import (
    NUM_STAGES,
    START_MS,
    Log,
    Row,
    Written,
    elsewhere,
    eventually,
    examples,
    messages,
    written,
)

__all__ = ["written"]

EVERYTHING = Request(starts={}, ends={})
LONGEST_MS = 60_000
UNSEEN = Watch(on_offsets=lambda _, __: None, on_rows=lambda _, __: None)


def filled(settings: Settings, target: Target, request: Request = EVERYTHING) -> Result:
    result = backfill(settings, request, target, UNSEEN)
    assert result is not None
    return result


def with_topic(settings: Settings, name: str) -> Settings:
    """The settings of a consumer of another topic of examples."""
    topic = Topic(name=name, partitions=settings.topics.examples.partitions)
    topics = settings.topics.model_copy(update={"examples": topic})
    return settings.model_copy(update={"topics": topics})


def rows_of(tables: dict[int, pa.Table]) -> pl.DataFrame:
    """Examples in one frame, by shard and number."""
    frame = pl.from_arrow(pa.concat_tables(t for t in tables.values() if t.num_rows))
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("shard", "number")


def read_parquet(path: Path, settings: Settings) -> pl.DataFrame:
    """A data set in the columns of an example, by shard and number."""
    table = ds.dataset(path, partitioning="hive").to_table()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame = frame.with_columns(pl.col("domain").cast(pl.String))
    return frame.select(example_schema(settings).names).sort("shard", "number")


def same(found: pl.DataFrame, wanted: pl.DataFrame) -> bool:
    return found.equals(wanted.select(found.columns).cast(found.schema))


def in_range(rows: pl.DataFrame, low_ms: int, high_ms: int) -> pl.DataFrame:
    """Examples of a range as a backfill numbers them."""
    kept = rows.filter(pl.col("ts_ms").is_between(low_ms, high_ms, closed="left"))
    return kept.with_columns(pl.int_range(pl.len()).over("shard").alias("number"))


@pytest.mark.kafka
def test_backfill_to_parquet_is_what_the_join_wrote(written: Written, tmp_path: Path) -> None:
    target = ParquetTarget(tmp_path / "examples")
    result = filled(written.settings, target)
    wanted = rows_of(written.examples)
    assert same(read_parquet(tmp_path / "examples", written.settings), wanted)
    assert (result.examples, result.left_open, result.through_ms) == (len(wanted), 0, END_MS)
    for task in ("click", "conversion"):
        masked = wanted.filter(pl.col(f"mask_{task}"))
        counts = (result.counts[f"examples.{task}"], result.counts[f"positives.{task}"])
        assert counts == (len(masked), masked[f"label_{task}"].sum())
    assert not target.folder.exists()
    with pytest.raises(BackfillRefused, match="is finished"):
        filled(written.settings, target)


@pytest.mark.kafka
def test_parquet_files_are_the_order_of_learning_by_day_and_domain(
    written: Written, tmp_path: Path
) -> None:
    filled(written.settings, ParquetTarget(tmp_path / "examples"))
    settings = written.settings
    learned = pl.concat(ready_tables(settings, written.examples))
    day = pl.from_epoch("ts_ms", time_unit="ms").dt.strftime("%Y-%m-%d")
    parts = learned.with_columns(day.alias("day")).partition_by("day", "domain", as_dict=True)
    assert parts
    for (on, domain), wanted in parts.items():
        folder = tmp_path / "examples" / f"day={on}" / f"domain={domain}"
        found = pl.read_parquet(folder / "part-0.parquet", hive_partitioning=False)
        assert same(found, wanted)
    files = sorted((tmp_path / "examples").rglob("*.parquet"))
    assert len(files) == len(parts)
    filled(settings, ParquetTarget(tmp_path / "again"))
    for path in files:
        twin = tmp_path / "again" / path.relative_to(tmp_path / "examples")
        assert twin.read_bytes() == path.read_bytes()


def ready_tables(settings: Settings, made: dict[int, pa.Table]) -> list[pl.DataFrame]:
    """Examples as a trainer merges them."""
    schema, shards = example_schema(settings), settings.das.shards
    reader = ExampleReader(
        Place.start(shards, shards),
        settings.das.bucket_ms,
        schema,
        lambda table: pa.array([True] * len(table)).to_numpy(zero_copy_only=False),
    )
    for shard, table in made.items():
        rows = table.select(schema.names).cast(schema)
        num = len(table)
        reader.put(shard, 0, rows, {"shard": shard, "first": 0, "through_ms": END_MS, "total": num})
    ready = reader.take()
    assert ready is not None
    frame = pl.from_arrow(ready.table)
    assert isinstance(frame, pl.DataFrame)
    return [frame]


@pytest.mark.kafka
def test_backfill_to_a_topic_is_what_the_join_wrote(written: Written, tmp_path: Path) -> None:
    name = f"again-{uuid.uuid4().hex[:8]}"
    target = TopicTarget(RunFolder(tmp_path), name)
    result = filled(written.settings, target)
    assert examples(with_topic(written.settings, name)) == written.examples
    assert result.counts["bytes"] > 0
    assert ends(with_topic(written.settings, name)) == {0, 1}
    with pytest.raises(BackfillRefused, match="is finished"):
        filled(written.settings, target)
    with pytest.raises(BackfillRefused, match="holds messages of another writer"):
        filled(written.settings, TopicTarget(RunFolder(tmp_path / "other"), name))
    own = written.settings.topics.examples.name
    with pytest.raises(BackfillRefused, match="is a topic of the run"):
        filled(written.settings, TopicTarget(RunFolder(tmp_path), own))


def ends(settings: Settings) -> set[int]:
    """Shards whose newest mark says that all rows are there and nothing follows."""
    totals = {s: table.num_rows for s, table in examples(settings).items()}
    return {
        header["shard"]
        for p in range(settings.topics.examples.partitions)
        for _, header in messages(settings, p)
        if header["through_ms"] == END_MS and header["total"] == totals[header["shard"]]
    }


@pytest.mark.kafka
@pytest.mark.parametrize("to", ["topic", "parquet"])
def test_backfill_of_a_time_range_is_the_examples_of_its_impressions(
    written: Written, tmp_path: Path, to: str
) -> None:
    low_ms, high_ms = START_MS + 50_123, START_MS + 120_456
    settings, name = written.settings, f"part-{uuid.uuid4().hex[:8]}"
    target = (
        ParquetTarget(tmp_path / "part")
        if to == "parquet"
        else TopicTarget(RunFolder(tmp_path), name)
    )
    result = filled(settings, target, replace(EVERYTHING, from_ms=low_ms, to_ms=high_ms))
    wanted = in_range(rows_of(written.examples), low_ms, high_ms)
    if to == "parquet":
        assert same(read_parquet(tmp_path / "part", settings), wanted)
    else:
        assert same(rows_of(examples(with_topic(settings, name))), wanted)
    assert (result.examples, result.left_open) == (len(wanted), 0)


class StampedLog(Log):
    """A log whose events reach the broker so long after they happen; before it, if negative."""

    def __init__(self, settings: Settings, delay_ms: int) -> None:
        self._delay_ms, self._stamping = delay_ms, Producer(client_config(settings.kafka))
        super().__init__(settings)

    def _send(self, topic: str, partition: int, event: Row) -> None:
        stamp_ms = event["ts_ms"] + self._delay_ms
        value = self.encoded(event)
        self._stamping.produce(topic, value, partition=partition, timestamp=stamp_ms)

    def write(self, stage: int, teacher: bool = True) -> None:
        super().write(stage, teacher)
        assert self._stamping.flush(30) == 0


@pytest.mark.kafka
@pytest.mark.parametrize("delay_ms", [1000, -100_000])
def test_a_time_range_is_read_from_where_the_broker_stood_then_if_that_is_early_enough(
    kafka_settings: Settings, tmp_path: Path, delay_ms: int
) -> None:
    raw = kafka_settings.model_dump()
    raw["das"]["repeat_horizon_s"] = 20.0
    for name in (
        "impressions",
        "labels",
    ):  # one log is written ahead of time
        raw["topics"][name]["max_ahead_s"] = 100.0
    settings = Settings.model_validate(raw)
    log, low_ms = StampedLog(settings, delay_ms), START_MS + 150_000
    for stage in range(NUM_STAGES - 1):
        log.write(stage)
    request = replace(EVERYTHING, from_ms=low_ms - 20_000, to_ms=low_ms - 15_000)
    made = plan(settings, request)
    spans = [*made.spans["impressions"], *made.spans["labels"]]
    assert [span.start > 0 for span in spans] == [delay_ms > 0] * len(spans)
    everything = filled(settings, ParquetTarget(tmp_path / "all"))
    found = filled(settings, ParquetTarget(tmp_path / "part"), request)
    rows = read_parquet(tmp_path / "all", settings)
    wanted = in_range(rows, request.from_ms, request.to_ms)
    assert same(read_parquet(tmp_path / "part", settings), wanted)
    assert 0 < found.examples == len(wanted) < everything.examples


@pytest.mark.kafka
def test_backfill_of_a_live_log_leaves_open_windows_out(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    log = Log(kafka_settings)
    for stage in range(2):
        log.write(stage)
    result = filled(kafka_settings, ParquetTarget(tmp_path / "early"))
    since_ms = START_MS + 60_000  # no impression from here on has all its windows closed
    request = replace(EVERYTHING, from_ms=since_ms)
    since = filled(kafka_settings, ParquetTarget(tmp_path / "since"), request)
    for stage in range(2, NUM_STAGES):  # what comes later is not in it
        log.write(stage)
    settings = elsewhere(kafka_settings)
    run(settings, RunFolder(tmp_path / "run"), Placement())
    through_ms = result.through_ms
    assert START_MS + 80_000 < through_ms < START_MS + 100_000
    wanted = rows_of(examples(settings)).filter(pl.col("closed_ts_ms") < through_ms)
    assert same(read_parquet(tmp_path / "early", settings), wanted)
    written_ms = START_MS + 100_000
    shown = [e["ts_ms"] for _, e in log.impressions if e["ts_ms"] < written_ms]
    closed = wanted.filter(pl.col("mask_conversion"))["impression_id"].n_unique()
    repeats = len(shown) - len({e["impression_id"] for _, e in log.impressions[: len(shown)]})
    assert len(shown) - closed - repeats <= result.left_open <= len(shown) - closed
    assert result.held_by
    num_since = sum(since_ms <= ts_ms for ts_ms in shown)
    assert num_since - repeats <= since.left_open <= num_since < result.left_open


@pytest.mark.kafka
def test_a_quiet_partition_holds_windows_back_unless_it_is_left_out(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    log = Log(kafka_settings, num=400)
    log.labels = [(0, label) for _, label in log.labels]
    for stage in range(2):
        log.write(stage)
    with pytest.raises(BackfillRefused, match=r"partition 1 holds no record .* --leave-out-quiet"):
        filled(kafka_settings, ParquetTarget(tmp_path / "strict"))
    request = replace(EVERYTHING, leave_out_quiet=True)
    result = filled(kafka_settings, ParquetTarget(tmp_path / "loose"), request)
    rows = read_parquet(tmp_path / "loose", kafka_settings)
    assert rows["closed_ts_ms"].max() < result.through_ms  # type: ignore[operator]
    shown = {e["impression_id"]: e["ts_ms"] for _, e in log.impressions}
    wanted = sum(ts + w < result.through_ms for ts in shown.values() for w in (10_000, LONGEST_MS))
    assert len(rows) == wanted > 0


@pytest.mark.kafka
@pytest.mark.parametrize("to", ["topic", "parquet"])
def test_backfill_goes_on_after_kills_and_stops(written: Written, tmp_path: Path, to: str) -> None:
    raw = written.settings.model_dump()
    raw["das"] |= {"recovery_every_s": 0.05, "max_batch": 8}  # some snapshots on the way
    settings, name = Settings.model_validate(raw), f"again-{uuid.uuid4().hex[:8]}"
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(settings), encoding="utf-8")
    out = tmp_path / "examples"
    target = TopicTarget(folder, name) if to == "topic" else ParquetTarget(out)
    output = ["--parquet", str(out)] if to == "parquet" else ["--topic", name]
    command = [sys.executable, "-m", "flows.cli", "backfill", "--run", str(folder.root), *output]
    kill_and_stop(command, target.folder)
    assert not out.exists()
    filled(written.settings, target)
    wanted = rows_of(written.examples)
    if to == "parquet":
        assert same(read_parquet(out, settings), wanted)
        assert (out / MANIFEST).exists()
    else:
        assert same(rows_of(examples(with_topic(settings, name))), wanted)


def kill_and_stop(command: list[str], folder: Path) -> None:
    """Start a backfill twice; each time end it behind a snapshot, by SIGKILL, then by SIGTERM."""
    for stop, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        before = snapshots(folder)
        process = subprocess.Popen(tethered(command), stdout=subprocess.DEVNULL)
        try:
            eventually(lambda before=before: snapshots(folder) > before)  # type: ignore[misc]
            process.send_signal(stop)
            assert process.wait(60) == code
        finally:
            process.kill()
            process.wait()


def snapshots(folder: Path) -> int:
    """The newest epoch of which an unfinished backfill has snapshots; 0 before the first."""
    epochs = [0]
    for path in (folder / "state" / "recovery").glob("*.sqlite3"):
        with suppress(RecoveryUnreadable):  # it ends meanwhile
            epochs += [epoch for _, epoch, *_ in rows(path, SAVED, JOIN_STEP)]
    return max(epochs)


@pytest.mark.kafka
def test_backfill_refuses_what_is_deleted(written: Written, tmp_path: Path) -> None:
    settings = written.settings
    topic = settings.topics.labels.name
    admin = AdminClient(client_config(settings.kafka))
    place = TopicPartition(topic, 0, 20)
    for future in admin.delete_records([place]).values():
        future.result()
    with pytest.raises(
        BackfillRefused, match=rf"{topic}' partition 0: offsets 0 to 19 are deleted"
    ):
        filled(settings, ParquetTarget(tmp_path / "all"))
    early = replace(EVERYTHING, starts={(topic, 0): 19})
    with pytest.raises(BackfillRefused, match=r"offsets 19 to \d+ are not all there: it holds"):
        filled(settings, ParquetTarget(tmp_path / "early"), early)
    given = replace(EVERYTHING, starts={(topic, 0): 20})
    assert filled(settings, ParquetTarget(tmp_path / "given"), given).examples > 0
    for future in admin.delete_records([TopicPartition(topic, 0, OFFSET_END)]).values():
        high = future.result().low_watermark
    for emptied in (EVERYTHING, replace(EVERYTHING, from_ms=START_MS, leave_out_quiet=True)):
        with pytest.raises(
            BackfillRefused,
            match=rf"'{topic}' partition 0: all offsets below {high} are deleted; "
            rf"--start {topic}:0:{high} says",
        ):
            filled(settings, ParquetTarget(tmp_path / "emptied"), emptied)
    given = replace(given, starts={(topic, 0): high}, leave_out_quiet=True)
    found = filled(settings, ParquetTarget(tmp_path / "answered"), given)
    assert (found.examples, found.through_ms) == (len(rows_of(written.examples)), END_MS)


def begun(settings: Settings, target: Target) -> None:
    """A first attempt that ends soon."""
    das = settings.das.model_copy(update={"max_batch": 1})

    class Interrupted(Exception):
        pass

    def interrupt(done: int, _: int) -> None:
        if done > 50:
            raise Interrupted

    broken = settings.model_copy(update={"das": das})
    with pytest.raises(Exception):  # noqa: B017, PT011
        backfill(broken, EVERYTHING, target, replace(UNSEEN, on_offsets=interrupt))
    assert (target.folder / "plan.json").exists()


@pytest.mark.kafka
def test_backfill_goes_on_with_the_same_request_only(written: Written, tmp_path: Path) -> None:
    target, settings = ParquetTarget(tmp_path / "examples"), written.settings
    begun(settings, target)
    with pytest.raises(BackfillRefused, match=r"unfinished backfill of another range[^$]*to_ms"):
        filled(settings, target, replace(EVERYTHING, to_ms=START_MS))
    raw = settings.model_dump()
    raw["topics"]["labels"]["lateness_s"] = 4.0
    with pytest.raises(
        BackfillRefused, match=r"with another configuration[^$]*labels\.lateness_s: 5\.0 then, 4\.0"
    ):
        filled(Settings.model_validate(raw), target)
    filled(settings, target)
    assert same(read_parquet(tmp_path / "examples", settings), rows_of(written.examples))


@pytest.mark.kafka
def test_backfill_of_a_lost_state_says_how_to_begin_again(written: Written, tmp_path: Path) -> None:
    target, settings = ParquetTarget(tmp_path / "examples"), written.settings
    begun(settings, target)
    (target.folder / "state" / "recovery" / "part-1.sqlite3").unlink()
    with pytest.raises(RecoveryUnreadable, match=rf"incomplete: .*; remove {target.folder} to"):
        filled(settings, target)
    shutil.rmtree(target.folder)
    assert filled(settings, target).examples == len(rows_of(written.examples))


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    target = ParquetTarget(tmp_path / "examples")
    full = "No space left on device"
    with pytest.raises(StateFull, match=f"{full}; make room and start"), own_state(target):
        raise OSError(errno.ENOSPC, full)
    with pytest.raises(OSError, match="another"), own_state(target):
        raise OSError(errno.EIO, "another")


@pytest.mark.kafka
def test_backfill_with_task_policies_is_what_the_join_wrote(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    raw = kafka_settings.model_dump()
    click, conversion = raw["tasks"]
    click |= {"early": True, "late_labels": "correct"}
    conversion |= {"given": "click", "early": True, "late_labels": "correct"}
    raw["das"]["correction_horizon_s"] = 20.0
    settings = Settings.model_validate(raw)
    log = Log(settings)
    for stage in range(NUM_STAGES):
        log.write(stage)
    live = elsewhere(settings)
    run(live, RunFolder(tmp_path / "run"), Placement())
    wanted = rows_of(examples(live))
    assert wanted["correction"].max() == 1
    assert wanted.filter(pl.col("closed_ts_ms") - pl.col("ts_ms") < 10_000).height > 100  # early
    filled(settings, ParquetTarget(tmp_path / "all"))
    assert same(read_parquet(tmp_path / "all", settings), wanted)
    low_ms, high_ms = START_MS + 50_123, START_MS + 100_456
    request = replace(EVERYTHING, from_ms=low_ms, to_ms=high_ms)
    filled(settings, ParquetTarget(tmp_path / "part"), request)
    part = read_parquet(tmp_path / "part", settings)
    assert same(part, in_range(wanted, low_ms, high_ms))


@pytest.mark.kafka
def test_predictions_of_other_shards_are_not_left_out_unseen(
    written: Written, tmp_path: Path
) -> None:
    raw = written.settings.model_dump()
    raw["das"]["shards"] = 3
    with pytest.raises(
        BackfillRefused, match=r"fm_predictions-.* holds rows of shard \d, which das"
    ):
        filled(Settings.model_validate(raw), ParquetTarget(tmp_path / "examples"))


def test_another_configuration_must_fit_the_predictions(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    raw["tasks"][1]["window_s"] = 90.0
    longer = Settings.model_validate(raw)
    assert other(longer, tiny_settings) is longer
    raw["das"]["shards"] = 3
    with pytest.raises(SettingsError, match=r"das\.shards = 3 must be 2 as in the run"):
        other(Settings.model_validate(raw), tiny_settings)
    raw = tiny_settings.model_dump()
    raw["tasks"] = [*raw["tasks"], {"name": "buy", "window_s": 90.0}]
    with pytest.raises(SettingsError, match=r"'buy' must be one of the run's, click, conversion"):
        other(Settings.model_validate(raw), tiny_settings)


def test_partition_that_is_not_built_yet_is_not_taken_for_read(tiny_settings: Settings) -> None:
    span = Span(start=0, end=1)
    made = Plan(
        from_ms=BEGIN_MS,
        to_ms=END_MS,
        spans={kind: [span, span] for kind in INPUTS},
        leave_out_quiet=True,
    )
    course = Course(on_progress=lambda _: None, leave_out_quiet=True)
    bounded_sources(tiny_settings, made, BackfillAhead(tiny_settings, course), course)
    names = {f"{kind}/{p}" for kind in INPUTS for p in range(2)}
    for name in names - {"labels/1"}:
        course.ended(name, START_MS)
    assert course.unread == {"labels/1": BEGIN_MS}
    assert course.followed_ms == BEGIN_MS


def test_a_request_says_what_is_wrong_with_it() -> None:
    with pytest.raises(BackfillRefused, match=r"--from .* must be before --to"):
        replace(EVERYTHING, from_ms=1000, to_ms=1000)
    assert parsed_offsets("--start", ["labels:0:17"]) == {("labels", 0): 17}
    for bad in ("labels", "labels:0", "labels:x:1", ":0:1", "labels:0:-1"):
        with pytest.raises(ValueError, match="--start is TOPIC:PARTITION:OFFSET, got"):
            parsed_offsets("--start", [bad])
    assert replace(EVERYTHING).from_ms == BEGIN_MS
