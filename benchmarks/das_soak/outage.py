"""A live stream whose broker falls silent in the middle: first frozen, later stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.das_soak.brute_force import expected_dead_letters, expected_examples
from benchmarks.das_soak.log import IMPRESSIONS_A_SECOND, LogWriter, random_log, soak_settings
from benchmarks.das_soak.runs import same_dead_letters, same_examples
from flows.config_file import dump
from flows.join.state import shards_folder
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import ensure_topics, producer_config
from flows.kafka.producer import BatchProducer
from flows.report.checks import Check
from flows.run.launch import exfm
from flows.run.supervisor import Group, Supervisor
from flows.run_folder import RunFolder
from flows.settings import Settings
from models.durable import write_atomically

STREAM_S = 60.0
"""Of writing; outages come on top."""
SPEED = 2.0
"""Event seconds a second."""
TICK_S = 0.25
CALM_S = 10.0
"""Between the outages."""
LONGEST_S = 600.0
JOIN = "das"


class LiveWriter:
    """Writes a log as time goes by, and goes on where it was when a broker returns.

    Behind `last_ms` it writes the rest at once. At the end of a log only stragglers are left; given
    time, partitions would fall silent for longer than `das.idle_s`, and the join would rightly go
    on without them. Here no silence but the broker's may be in the way.
    """

    def __init__(self, writer: LogWriter, first_ms: int, last_ms: int) -> None:
        self._writer, self._at_ms, self._last_ms = writer, first_ms, last_ms
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the log; raise what its writing raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def event_s(self) -> float:
        """Event time that is written, on the log's own clock."""
        return self._at_ms / 1000

    def _run(self) -> None:
        try:
            while self._at_ms <= self._last_ms:
                self._at_ms += round(TICK_S * SPEED * 1000)
                self._writer.write(self._at_ms)
                time.sleep(TICK_S)
            self._writer.end()
        except Exception as error:
            self._failure = error


class Kept:
    """The join under a supervisor, which restarts it if it dies, as `exfm up` does."""

    def __init__(self, supervisor: Supervisor, settings: Settings, folder: RunFolder) -> None:
        write_atomically(folder.config, dump(settings).encode())
        self._supervisor, self._segments = supervisor, shards_folder(folder.state / "das")
        command = exfm("run", JOIN, folder=folder)
        supervisor.add(Group(name=JOIN, commands=lambda: [command]))

    @property
    def restarts(self) -> int:
        """How often it died."""
        return self._supervisor.states()[JOIN][1]

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        until_s = time.monotonic() + seconds
        self._wait(lambda: time.monotonic() >= until_s)

    def run_until_at_work(self) -> None:
        """Wait for its first segment."""
        self._wait(lambda: any(self._segments.rglob("*.arrow")))

    def run_to_the_end(self) -> None:
        """Wait until it has come to the end of the log."""
        self._wait(lambda: self._supervisor.finished(JOIN))

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + LONGEST_S
        while not done():
            self._supervisor.poll()
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the join is still waited for after {LONGEST_S:.0f} s")
            time.sleep(0.1)


def outages(root: Path, seconds: float, seed: int) -> Iterator[Check]:
    """Freeze the broker, later stop it, each for so long."""
    folder = RunFolder(root / "join")
    with EmbeddedKafka(root / "kafka") as broker:
        settings = soak_settings(broker.bootstrap, "live", as_of=False)
        ensure_topics(settings)
        log = random_log(settings, round(STREAM_S * SPEED * IMPRESSIONS_A_SECOND), seed)
        producer = BatchProducer(producer_config(settings.kafka))
        with Supervisor(folder.logs, os.environ) as supervisor:
            join = Kept(supervisor, settings, folder)
            first_ms, _ = log.arrivals_ms
            last_ms = first_ms + round(1000 * STREAM_S * SPEED)
            live = LiveWriter(LogWriter(log, producer), first_ms, last_ms)
            join.run_until_at_work()
            begun_s = live.event_s
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                join.run_for(seconds)
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            frozen_s = live.event_s - begun_s
            join.run_for(CALM_S)
            begun_s = live.event_s
            broker.stop()
            join.run_for(seconds)
            stopped_s = live.event_s - begun_s
            broker.start()
            live.join()
            join.run_to_the_end()
            restarts = join.restarts
        yield Check(
            name="broker frozen (SIGSTOP), later stopped and started, under a live stream",
            value=f"{seconds:.0f} s each, in which {frozen_s:.1f} s and {stopped_s:.1f} s of the "
            f"stream could be written; {restarts} restarts of the join",
            rule="in the middle of the stream; the join comes to its end",
            passed=frozen_s < seconds and live.event_s > begun_s + stopped_s,
        )
        yield same_examples("examples of the live stream", settings, expected_examples(log))
        yield same_dead_letters(settings, expected_dead_letters(log))
