"""A stop of one of several processes: all end, and what nobody read is not closed without."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.join.read_ahead import ReadAhead
from flows.join.sources import EventSource, InputPartition, Item, PredictionSource
from flows.kafka.producer import BatchProducer
from flows.records import floor_ms
from flows.runner import request_stop, stop_requested, stopping_on_signals
from flows.settings import Settings
from tests.processes import free_addresses, started
from tests.test_das import DAS, START_MS, elsewhere, eventually, examples, num_rows

STEP_MS = 100
WINDOW_MS = 10_000


def live(settings: Settings) -> Settings:
    """One task, and a wall clock that soon gives up on who is silent."""
    raw = settings.model_dump()
    raw["teacher"]["version"] = "newest"
    raw["das"] |= {"idle_s": 0.3, "teacher_grace_s": 0.3}
    return elsewhere(Settings.model_validate(raw))


def write(producer: BatchProducer, settings: Settings, first: int, num: int) -> None:
    """Impressions in partition 0, each with a click in partition 1, and nothing in the others."""
    for i in range(first, first + num):
        shown_ms = START_MS + i * STEP_MS
        event = {"impression_id": f"i{i}", "domain": "feed", "ts_ms": shown_ms}
        click = {"impression_id": f"i{i}", "task": "click", "value": 1, "ts_ms": shown_ms + 1}
        producer.send(settings.topics.impressions.name, json.dumps(event).encode(), partition=0)
        producer.send(settings.topics.labels.name, json.dumps(click).encode(), partition=1)
    producer.flush()


def closed_at(num: int) -> int:
    """Click windows that have ended when so many impressions were shown, and no more come."""
    newest_ms = START_MS + (num - 1) * STEP_MS - 5000  # lateness
    ends_ms = [START_MS + i * STEP_MS + WINDOW_MS for i in range(num)]
    return sum(ms < floor_ms(newest_ms, 1000) for ms in ends_ms)


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_stop_of_one_process_ends_all_and_turns_no_positive(
    kafka_settings: Settings, producer: BatchProducer, tmp_path: Path
) -> None:
    settings = live(kafka_settings)
    write(producer, settings, 0, 300)
    with ExitStack() as stack:
        addresses = free_addresses(2)
        group = [
            stack.enter_context(started(DAS, settings, tmp_path, i, addresses)) for i in (0, 1)
        ]
        eventually(lambda: num_rows(settings) == closed_at(300))  # all partitions are idle
        group[1].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in group] == [0, 0]
    write(producer, settings, 300, 600)
    with started(DAS, settings, tmp_path) as process:
        eventually(lambda: num_rows(settings) >= closed_at(900))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    rows = [row for table in examples(settings).values() for row in table.to_pylist()]
    clicks = [row["label_click"] for row in rows if row["mask_click"]]
    assert len(clicks) == closed_at(900)
    assert clicks == [1] * len(clicks)


@pytest.mark.kafka
def test_stopped_source_tells_all_shards_and_ends(kafka_settings: Settings) -> None:
    ahead = ReadAhead(kafka_settings)
    parts: list[InputPartition] = [
        EventSource(kafka_settings, "labels", ahead, None).build_part("in", "0", None),
        PredictionSource(kafka_settings, ahead).build_part("in", "1", None),
    ]
    told: list[Item] = [("0", ("stop", 0)), ("1", ("stop", 1))]
    with stopping_on_signals():
        request_stop()
        for part in parts:
            assert part.next_batch() == told
            with pytest.raises(StopIteration):
                part.next_batch()
            part.close()
    with stopping_on_signals():
        assert not stop_requested()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_that_waits_for_others_ends_at_a_signal(number: int, tmp_path: Path) -> None:
    code = """
import sys
import logging
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from flows.runner import Placement, run_flow
logging.basicConfig(level=logging.INFO, format="%(message)s")
flow = Dataflow("few")
op.output("out", op.input("in", flow, TestingSource([1])), TestingSink([]))
addresses = tuple(sys.argv[1].split())
run_flow(flow, Placement(addresses=addresses), recovery=None, epoch_s=0.0)
"""
    addresses = free_addresses(2)
    process = subprocess.Popen(
        [sys.executable, "-c", code, addresses], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert said == f"waiting for the other processes of this flow: {addresses.split()[1]}\n"
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == "stopped before the other processes were there\n"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


PEER = """
import sys
from datetime import datetime, timedelta, timezone
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.testing import TestingSink
from flows.panics import remembering
from flows.run.errors import end, told
from flows.runner import Placement, run_flow
from flows.settings import SettingsError

class Silence(StatelessSourcePartition):
    begun = False
    @remembering
    def next_batch(self):
        if not self.begun:
            print("reading", flush=True)
        elif sys.stdin.readline():
            raise SettingsError("this is wrong")
        self.begun = True
        return []

class Everywhere(DynamicSource):
    def build(self, step_id, worker_index, worker_count):
        return Silence()

flow = Dataflow("few")
op.output("out", op.input("in", flow, Everywhere()), TestingSink([]))
placement = Placement(process_id=int(sys.argv[1]), addresses=tuple(sys.argv[2].split()))
try:
    run_flow(flow, placement, recovery=None, epoch_s=1.0)
except Exception as error:
    end(*told(error))
"""


@pytest.mark.parametrize("killed", [True, False])
def test_process_tells_its_own_error_or_that_another_is_gone(killed: bool) -> None:
    addresses, pipe = free_addresses(2), subprocess.PIPE
    with ExitStack() as stack:
        group = [
            subprocess.Popen(
                [sys.executable, "-c", PEER, str(i), addresses],
                stdin=pipe, stdout=pipe, stderr=pipe, text=True,
            )
            for i in (0, 1)
        ]  # fmt: skip
        for process in group:
            stack.enter_context(process)
            stack.callback(process.kill)
        for process in group:
            assert process.stdout is not None
            assert "reading\n" in process.stdout  # behind what Bytewax says there
        if killed:
            group[1].kill()
        _, other = group[1].communicate("" if killed else "fail", 30)
        _, survivor = group[0].communicate("", 30)
        assert [process.returncode for process in group] == [1, -signal.SIGKILL if killed else 2]
    assert survivor.splitlines()[-1].startswith("exfm: another process of this flow is gone: ")
    assert killed or other.splitlines()[-1] == "exfm: this is wrong"
    assert "Traceback" not in survivor + other
