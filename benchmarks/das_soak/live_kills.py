"""kill -9 of a live join, while a partition of the labels is held back for as long as a window.

What a live join writes depends on when it was killed: on a wall clock that gives up waiting for the
silent partition, and on the order in which labels arrive in a later life. So its examples are not
those of one brute-force join, but of each this holds: running numbers have no gap and come once;
an impression and task has one example and then corrections 1, 2, ..., each of which contradicts the
one before; no impression is missing; and where late labels correct, the last word is the truth.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl

from benchmarks.das_soak.kills import LIVE_INSTANTS, Gauntlet, Toll
from benchmarks.das_soak.log import LogWriter, SoakLog, random_log, soak_settings
from benchmarks.examples import accepted_examples
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import ensure_topics
from flows.kafka.producer import BatchProducer
from flows.report.checks import Check
from flows.run_folder import RunFolder
from flows.settings import Settings

IMPRESSIONS_A_KILL = 2000
HELD = 1
"""Partition of the labels that is held back."""
PORTIONS_HELD = (8, 60)
"""Of the stream, at least and at most: up to a minute and a half of event time."""
CALM = (2, 20)
"""Between two such times."""
IDLE_S = 0.5
RECOVERY_EVERY_S = 3.0
"""So long that a life writes much behind its last snapshot."""
TASK = "purchase"
"""Independent, of a long window, whose late labels correct: what is late comes out right."""
Said = dict[tuple[str, int], list[tuple[int, int]]]
"""Correction and label of each example of a task, by id and event time of the impression."""


class HesitantWriter(LogWriter):
    """Holds a partition of the labels back from time to time; nothing is lost, all in order."""

    def __init__(self, log: SoakLog, producer: BatchProducer, seed: int = 0) -> None:
        super().__init__(log, producer)
        self._rng = random.Random(seed)
        self._held: list[pl.DataFrame] = []
        self._is_holding = False
        self._left = self._rng.randint(*CALM)
        self.num_held = 0
        """Messages that were ever held back."""

    def write(self, until_ms: int) -> None:
        """As a `LogWriter`; a portion may begin or end a silence."""
        self._left -= 1
        if self._left <= 0:
            self._is_holding = not self._is_holding
            self._left = self._rng.randint(*(PORTIONS_HELD if self._is_holding else CALM))
        super().write(until_ms)

    def end(self) -> None:
        """Write what is held back, the rest and the ends."""
        self._is_holding = False
        self._left = 1 << 30
        super().end()

    def _send(self, topic: str, frame: pl.DataFrame) -> None:
        if topic == self._topics.labels.name:
            frame = self._not_held(frame)
        super()._send(topic, frame)

    def _not_held(self, frame: pl.DataFrame) -> pl.DataFrame:
        if not self._is_holding:
            due, self._held = [*self._held, frame], []
            return pl.concat(due)
        mine = pl.col("partition") == HELD
        self._held.append(frame.filter(mine))
        self.num_held += self._held[-1].height
        return frame.filter(~mine)


def live_kills(root: Path, kills: int, seed: int) -> Iterator[Check]:
    """Kill a live join so often, and look at what it wrote."""
    with EmbeddedKafka(root / "kafka") as broker:
        settings = live_settings(broker.bootstrap)
        ensure_topics(settings)
        log = random_log(settings, kills * IMPRESSIONS_A_KILL, seed)
        started_s = time.monotonic()
        folder, rng = RunFolder(root / "killed"), random.Random(seed)
        gauntlet = Gauntlet(settings, folder, log, broker, rng, HesitantWriter, LIVE_INSTANTS)
        toll = gauntlet.run(kills, quiet)
        yield Check(
            name=f"kill -9 of a live join, labels held back, {time.monotonic() - started_s:.0f} s",
            value=", ".join(f"{n} {instant}" for instant, n in toll.instants.items()),
            rule=f"{kills}",
            passed=toll.kills >= kills,
        )
        yield from last_words(settings, log)


def live_settings(bootstrap: str) -> Settings:
    """The soak's, with a wall clock that soon gives up on a silent partition."""
    raw = soak_settings(bootstrap, "live-kills", as_of=False).model_dump()
    raw["das"] |= {"idle_s": IDLE_S, "recovery_every_s": RECOVERY_EVERY_S}
    return Settings.model_validate(raw)


def quiet(_toll: Toll) -> None:
    """Say nothing."""


def last_words(settings: Settings, log: SoakLog) -> Iterator[Check]:
    """What must hold of the examples of a live join, however it was killed."""
    name = "running numbers of a live join"
    try:
        found = accepted_examples(settings)
    except ValueError as error:
        yield Check(name=name, value=str(error), rule="no gap, each once", passed=False)
        return
    yield Check(
        name=name,
        value=f"{len(found.table):,} examples, {found.repeats:,} written again",
        rule="no gap, each once",
        passed=found.repeats == 0,
    )
    table = pl.DataFrame(pl.from_arrow(found.table))
    yield numbered(settings, table)
    shown = impressions(log)
    said = examples_of(table, TASK)
    missing = [key for key in shown if key not in said]
    yield Check(
        name="impressions of a live join without an example of a long window",
        value=f"{len(missing)} of {len(shown):,}",
        rule="none",
        passed=not missing,
    )
    yield truths(truth(log, shown), said)


def numbered(settings: Settings, table: pl.DataFrame) -> Check:
    """Corrections of every task are numbered and contradict what was said before."""
    wrong = corrections = 0
    for task in settings.tasks:
        for examples in examples_of(table, task.name).values():
            numbers, labels = zip(*examples, strict=True)
            corrections += len(numbers) - 1
            contradict = all(a != b for a, b in pairwise(labels))
            wrong += numbers != tuple(range(len(numbers))) or not contradict
    return Check(
        name="corrections of a live join",
        value=f"{corrections:,}; {wrong} times misnumbered or without news",
        rule="1, 2, ... behind one example, each contradicts the one before",
        passed=not wrong and corrections > 0,
    )


def examples_of(table: pl.DataFrame, task: str) -> Said:
    """In the order of the topic."""
    rows = table.filter(pl.col(f"mask_{task}"))
    found: Said = defaultdict(list)
    names = ("impression_id", "ts_ms", "correction", f"label_{task}")
    for ident, ts_ms, correction, label in rows.select(names).iter_rows():
        found[ident, ts_ms].append((correction, label))
    return dict(found)


def impressions(log: SoakLog) -> set[tuple[str, int]]:
    """Id and event time of those on time whose id came once: what else counts, policies decide."""
    kept = log.impressions.filter(~pl.col("is_broken"))
    once = kept.filter(pl.len().over("impression_id") == 1).filter("on_time")
    return set(once.select("impression_id", "ts_ms").iter_rows())


def truth(log: SoakLog, shown: set[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Label of those whose labels of `TASK` agree: 1 if a positive follows the impression."""
    labels = log.labels.filter(~pl.col("is_broken") & (pl.col("task") == TASK))
    labels = labels.filter(pl.col("on_time"))
    of_id: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for ident, ts_ms, value in labels.select("impression_id", "ts_ms", "value").iter_rows():
        of_id[ident].append((ts_ms, value))
    found = {}
    for ident, shown_ms in shown:
        values = {value for ts_ms, value in of_id[ident] if ts_ms >= shown_ms}
        if len(values) < 2:
            found[ident, shown_ms] = max(values, default=0)
    return found


def truths(expected: dict[tuple[str, int], int], said: Said) -> Check:
    """The last example says what the labels say."""
    wrong = [key for key, value in expected.items() if key in said and said[key][-1][1] != value]
    positives = sum(expected.values())
    return Check(
        name=f"last example of {TASK}, of impressions whose labels agree",
        value=f"{len(wrong)} of {len(expected):,} wrong, {positives:,} of them positive",
        rule="none wrong",
        passed=not wrong and positives > 0,
    )
