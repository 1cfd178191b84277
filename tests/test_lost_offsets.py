"""Messages deleted before they were read: a run stops and says so, or goes on and counts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from flows.backfill.targets import with_examples
from flows.events.reader import EventReader
from flows.join.read_ahead import ReadAhead
from flows.join.seal import sealed
from flows.join.sources import PredictionSource
from flows.kafka.client import client_config
from flows.kafka.lost_offsets import LostOffsets, OffsetLost
from flows.kafka.producer import BatchProducer
from flows.records import PredictionHeader, encode, prediction_schema
from flows.settings import Settings, Topic
from monitoring.metrics import SOURCE_LOST
from tests.processes import started
from tests.test_das import DAS, START_MS, Log, elsewhere, eventually, examples, num_rows
from tests.test_events import impression, next_batch


def test_replay_and_default_insist_and_a_live_run_may_skip(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    assert not LostOffsets.of_inputs(tiny_settings).skips
    raw["teacher"]["version"] = "newest"
    assert not LostOffsets.of_inputs(Settings.model_validate(raw)).skips
    raw["kafka"]["lost_offsets"] = "skip"
    skipping = Settings.model_validate(raw)
    assert LostOffsets.of_inputs(skipping).skips
    backfilled = with_examples(skipping, Topic(name="again"))
    with pytest.raises(OffsetLost, match=r"cannot be skipped where event time decides alone"):
        LostOffsets.of_inputs(backfilled).resume("labels", 0, 200, 300, 400)


def test_error_names_offsets_setting_and_choices(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    raw["teacher"]["version"] = "newest"
    lost = LostOffsets.of_inputs(Settings.model_validate(raw))
    with pytest.raises(OffsetLost) as error:
        lost.resume("labels", 0, 200, 300, 400)
    for part in (
        "topic 'labels' partition 0: offset 200 is lost: the partition holds offsets 300 to 400",
        "100 messages were deleted before they were read",
        "kafka.lost_offsets = 'stop' ends here; with 'skip' the reader goes on at the oldest",
        "a new run",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(("offset", "low", "high"), [(11, 4, 10), (1, 0, 0), (5, 4, 10)])
def test_offset_of_another_topic_is_never_skipped(offset: int, low: int, high: int) -> None:
    rule = rf"offset {offset} is lost: .* {low} to {high}: the topic was deleted and created anew"
    with pytest.raises(OffsetLost, match=rf"{rule}.* never skipped"):
        LostOffsets(skips=True).resume("labels", 0, offset, low, high)


def live(settings: Settings, lost_offsets: str) -> Settings:
    """Settings of a live run that soon gives up on who is silent."""
    raw = settings.model_dump()
    raw["teacher"]["version"] = "newest"
    raw["kafka"]["lost_offsets"] = lost_offsets
    raw["das"] |= {"idle_s": 0.3, "teacher_grace_s": 0.3}
    return Settings.model_validate(raw)


def delete_before(settings: Settings, topic: Topic, partition: int, offset: int) -> None:
    """As retention does."""
    place = TopicPartition(topic.name, partition, offset)
    admin = AdminClient(client_config(settings.kafka))  # its futures end only while it is there
    admin.delete_records([place])[place].result()


def counted(topic: Topic) -> float:
    return float(SOURCE_LOST.labels(topic.name)._value.get())


@pytest.mark.kafka
def test_event_reader_skips_and_keeps_its_running_maximum(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    settings = live(kafka_settings, "skip")
    topic = settings.topics.impressions
    for i in range(6):  # what comes behind the skip is older than what was read before it
        producer.send(topic.name, impression(i, START_MS - 1000 * i), partition=1)
    producer.flush()
    delete_before(settings, topic, 1, 4)
    with pytest.raises(OffsetLost, match=r"offset 2 is lost: .* 4 to 6"):
        EventReader(live(kafka_settings, "stop"), "impressions", 1, (2, START_MS), None)
    reader = EventReader(settings, "impressions", 1, (2, START_MS), None)
    assert counted(topic) == 2
    batch = next_batch(reader)
    assert batch.table["impression_id"].to_pylist() == ["i-4", "i-5"]
    assert reader.state() == (6, START_MS)
    reader.close()


@pytest.mark.kafka
def test_predictions_that_are_lost_are_skipped_and_counted(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    settings, topic = live(kafka_settings, "skip"), kafka_settings.topics.fm_predictions
    nothing = prediction_schema(settings).empty_table()
    for i in range(6):
        header = PredictionHeader(partition=0, progress_ms=START_MS + i)
        producer.send(topic.name, encode(nothing, header), partition=0)
    producer.flush()
    delete_before(settings, topic, 0, 5)
    state = sealed((3, {0: START_MS, 1: START_MS}))
    with pytest.raises(OffsetLost, match=r"offset 3 is lost: .* 5 to 6"):
        source(live(kafka_settings, "stop")).build_part("in", "0", state)
    part = source(settings).build_part("in", "0", state)
    eventually(lambda: any(what == "watermark" for _, (what, *_) in part.next_batch()))
    assert part.snapshot() == sealed((6, {0: START_MS + 5, 1: START_MS}))
    assert counted(topic) == 2
    part.close()


def source(settings: Settings) -> PredictionSource:
    return PredictionSource(settings, ReadAhead(settings))


@pytest.mark.kafka
def test_join_whose_labels_were_deleted_stops_or_goes_on_as_chosen(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    stopping = elsewhere(live(kafka_settings, "stop"))
    log = Log(stopping, num=600)
    log.write(0, teacher=False)
    with started(DAS, stopping, tmp_path) as process:
        eventually(lambda: num_rows(stopping) > 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    before = num_rows(stopping)
    log.write(1, teacher=False)
    for p in range(2):
        late = [e for q, e in log.labels if q == p and e["ts_ms"] < START_MS + 100_000]
        delete_before(stopping, stopping.topics.labels, p, len(late) - 5)
    with started(DAS, stopping, tmp_path) as process:
        assert process.wait(60) == 1
    assert num_rows(stopping) == before
    raw = stopping.model_dump()
    raw["kafka"]["lost_offsets"] = "skip"
    with started(DAS, Settings.model_validate(raw), tmp_path) as process:
        eventually(lambda: num_rows(stopping) > before + 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert all(table.num_rows for table in examples(stopping).values())
