"""A live stream whose broker falls silent in the middle: first frozen, later stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.das_soak.brute_force import expected_dead_letters, expected_examples
from benchmarks.das_soak.join_process import JoinProcesses
from benchmarks.das_soak.log import IMPRESSIONS_A_SECOND, LogWriter, random_log, soak_settings
from benchmarks.das_soak.runs import same_dead_letters, same_examples
from flows.broker import EmbeddedKafka
from flows.checks import Check
from flows.kafka_client import ensure_topics, producer_config
from flows.producer import BatchProducer
from flows.run_folder import RunFolder

STREAM_S = 60.0
"""Of writing; outages come on top."""
SPEED = 3.0
"""Event seconds a second."""
TICK_S = 0.25
CALM_S = 15.0
"""Before the first outage and behind it."""
DRAIN_S = 300.0


class LiveWriter:
    """Writes a log as time goes by, and goes on where it was when a broker returns."""

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


def outages(root: Path, seconds: float, seed: int) -> Iterator[Check]:
    """Freeze the broker, then stop it, each for so long; the join is not restarted."""
    with EmbeddedKafka(root / "kafka") as broker:
        settings = soak_settings(broker.bootstrap, "live", as_of=False)
        ensure_topics(settings)
        log = random_log(settings, round(STREAM_S * SPEED * IMPRESSIONS_A_SECOND), seed)
        producer = BatchProducer(producer_config(settings.kafka))
        folder = RunFolder(root / "join")
        with JoinProcesses(settings, folder, 1) as processes:
            live = LiveWriter(LogWriter(log, producer), *log.arrivals_ms)
            processes.sleep(CALM_S)
            begun_s = live.event_s
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                processes.sleep(seconds)
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            frozen_s = live.event_s - begun_s
            processes.sleep(CALM_S)
            begun_s = live.event_s
            broker.stop()
            processes.sleep(seconds)
            stopped_s = live.event_s - begun_s
            broker.start()
            live.join()
            processes.wait_for_the_end(DRAIN_S)
        yield Check(
            name="broker frozen (SIGSTOP), later stopped and started, under a live stream",
            value=f"{seconds:.0f} s each, in which {frozen_s:.1f} s and {stopped_s:.1f} s of the "
            "stream could be written; the join was not restarted",
            rule="the same process comes to the end of the log",
            passed=True,
        )
        yield same_examples("examples of the live stream", settings, expected_examples(log))
        yield same_dead_letters(settings, expected_dead_letters(log))
