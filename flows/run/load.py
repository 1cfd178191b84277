"""A light load on the server, with the run's own impressions: `exfm load`.

Requests go out one after the other at a steady rate, to each student in turn, as soon as the server
says that the student is ready. An answer counts as failed unless it is 200 and holds a probability
for every candidate and task. `load.json` in the run's folder tells what happened, each second.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from flows.events import arrow_events
from flows.events.decoding import parser
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.records import impression_columns
from flows.run.process import SERVE
from flows.run.scoring_client import Client, fault, request_body
from flows.run_folder import RunFolder, write_json
from flows.settings import Settings, Student

logger = logging.getLogger(__name__)

REPORT_S = 1.0
KEPT_LATENCIES = 200_000
KEPT_MESSAGES = 256
"""Newest messages of each partition that candidates are drawn from."""


@dataclass(kw_only=True)
class Outcome:
    """What the requests of a run led to."""

    requests: int = 0
    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By reason."""
    versions: dict[str, list[int]] = field(default_factory=dict)
    """Versions that answered, of each model, in order."""
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))
    series: list[dict[str, float]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Content of `load.json`."""
        return {
            "requests": self.requests,
            "rows": self.rows,
            "failed": sum(self.failures.values()),
            "failures": dict(self.failures),
            "versions": self.versions,
            **percentiles(list(self.latencies_ms)),
            "series": self.series,
        }


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float | None]:
    """Median and 99th percentile in ms; None without requests."""
    if not latencies_ms:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(latencies_ms, (50, 99)).tolist()
    return {"p50_ms": p50, "p99_ms": p99}


class Impressions:
    """The newest impressions of the run, to draw candidates from."""

    def __init__(self, settings: Settings) -> None:
        topic = settings.topics.impressions
        self._schema = pa.schema(impression_columns(settings))
        self._parse = (
            None
            if topic.format == "arrow"
            else parser(self._schema, topic.format, settings.schema_registry)
        )
        config = client_config(settings.kafka)
        self._consumers = [
            PartitionConsumer(config, topic.name, partition, None)
            for partition in range(topic.partitions)
        ]
        self._rows = self._schema.empty_table()
        self._newest: list[deque[bytes]] = [deque(maxlen=KEPT_MESSAGES) for _ in self._consumers]

    def refresh(self) -> None:
        """Read on; what is older than the newest messages is forgotten."""
        moved = False
        for consumer, newest in zip(self._consumers, self._newest, strict=True):
            while messages := consumer.poll(8192):
                values = (message.value() for message in messages[-KEPT_MESSAGES:])
                newest.extend(value for value in values if value)
                moved = True
        if moved:
            self._rows = self._decoded([value for newest in self._newest for value in newest])

    def draw(self, domains: Sequence[str], rows: int, rng: np.random.Generator) -> pa.Table:
        """Random impressions of some domains, with repeats; empty if there are none."""
        mine = self._rows.filter(np.isin(self._rows["domain"].to_pylist(), list(domains)))
        if not len(mine):
            return mine
        return mine.take(rng.integers(len(mine), size=rows))

    def close(self) -> None:
        """Leave the broker."""
        for consumer in self._consumers:
            consumer.close()

    def _decoded(self, values: list[bytes]) -> pa.Table:
        if self._parse is not None:
            return self._parse(values)[0]
        tables = []
        for value in values:
            try:
                tables.append(arrow_events.parse(value, self._schema))
            except arrow_events.BadMessage as error:
                logger.debug("skipped: %s", error.reason)
        return pa.concat_tables(tables) if tables else self._rows


class LoadDriver:
    """Sends requests and counts what comes back."""

    def __init__(self, settings: Settings, folder: RunFolder, *, rows: int, seed: int = 0) -> None:
        self._settings = settings
        self._client = Client(folder.processes / f"{SERVE}.json")
        self._impressions = Impressions(settings)
        self._rng = np.random.default_rng(seed)
        self._rows = rows
        self._ready: set[str] = set()
        self.outcome = Outcome()

    def run(
        self, rate: float, should_stop: Callable[[], bool], on_report: Callable[[], None]
    ) -> None:
        """Send `rate` requests a second until told to stop."""
        number, due_s = 0, time.monotonic()
        report_s = due_s + REPORT_S
        self._impressions.refresh()
        while not should_stop():
            time.sleep(max(0.0, min(due_s - time.monotonic(), REPORT_S)))
            if time.monotonic() >= due_s:
                students = self._settings.students
                self.send(students[number % len(students)])
                number += 1
                due_s = max(due_s + 1.0 / rate, time.monotonic() - 1.0)
            if time.monotonic() >= report_s:
                report_s = time.monotonic() + REPORT_S
                self._impressions.refresh()
                self._note()
                on_report()
        self._note()
        on_report()
        self._impressions.close()
        self._client.close()

    def send(self, student: Student) -> None:
        """One request, unless the student is not ready or nothing is known to score."""
        if student.name not in self._ready and not self._becomes_ready(student.name):
            return
        domains = student.domains or self._settings.domains
        table = self._impressions.draw(domains, self._rows, self._rng)
        if not len(table):
            return
        body = request_body(table, self._settings.encoding(student).features)
        started_s = time.perf_counter()
        try:
            status, answer = self._client.call("POST", f"/v2/models/{student.name}/infer", body)
            failure = fault(status, answer, student.tasks, len(table))
        except (OSError, http.client.HTTPException) as error:
            failure, answer = type(error).__name__, b""
        latency_ms = (time.perf_counter() - started_s) * 1000
        self._count(student.name, failure, answer, latency_ms, len(table))

    def _count(
        self, model: str, failure: str | None, answer: bytes, latency_ms: float, rows: int
    ) -> None:
        self.outcome.requests += 1
        if failure is not None:
            logger.warning("%s: %s: %s", model, failure, answer[:200])
            self.outcome.failures[failure] += 1
            return
        self.outcome.rows += rows
        self.outcome.latencies_ms.append(latency_ms)
        versions = self.outcome.versions.setdefault(model, [])
        version = int(json.loads(answer)["model_version"])
        if not versions or versions[-1] != version:
            versions.append(version)

    def _becomes_ready(self, model: str) -> bool:
        try:
            status, _ = self._client.call("GET", f"/v2/models/{model}/ready")
        except (OSError, http.client.HTTPException):
            return False
        if status == 200:
            self._ready.add(model)
        return status == 200

    def _note(self) -> None:
        outcome = self.outcome
        recent = percentiles(list(outcome.latencies_ms)[-500:])
        point = {"at_s": time.time(), "requests": float(outcome.requests)}
        point |= {name: value for name, value in recent.items() if value is not None}
        outcome.series.append(point)


def drive(
    settings: Settings,
    folder: RunFolder,
    *,
    rate: float,
    rows: int,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Load the run's server until told to stop; `load.json` is rewritten each second."""
    driver = LoadDriver(settings, folder, rows=rows)
    path = folder.root / "load.json"
    driver.run(rate, should_stop, lambda: write_json(path, driver.outcome.report()))
    return driver.outcome
