"""Many kill -9 of the real join over a real Kafka, at random and at chosen instants."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.das_soak.join_process import JoinProcesses
from benchmarks.das_soak.log import LogWriter, SoakLog
from benchmarks.das_soak.watching import Watch
from flows.join.state import recovery_folder, shards_folder
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import producer_config
from flows.kafka.producer import BatchProducer
from flows.run_folder import RunFolder
from flows.settings import Settings

INSTANTS = {"any": 3, "at work": 3, "segment write": 4, "snapshot": 2}
LIVE_INSTANTS = {"any": 1, "later": 4, "segment write": 1, "snapshot": 1}
"""When a process is killed, and how often so among the others.

any: within the first seconds, so also while it starts and reads its state. later: when it has read
what there was, and perhaps given up on who is silent. at work: within half a second of its first
snapshot. segment write: as soon as a file of a segment appears. snapshot: as soon as the recovery
store is written.
"""
PORTIONS_A_LIFE = 4
BROKER_EVERY = 25
"""Kills of the join for one of the broker."""
STOP_EVERY = 20
"""Kills for one clean stop."""
PATIENCE_S = 20.0
"""For an instant that does not come."""


@dataclass(kw_only=True, slots=True)
class Toll:
    """What was done to the processes, and how it met them."""

    instants: Counter[str] = field(default_factory=Counter)
    """Kills by instant."""
    processes: Counter[int] = field(default_factory=Counter)
    """Lives by number of processes."""
    half_written: int = 0
    """Kills that left a draft of a segment."""
    idle: int = 0
    """Waits for an instant that did not come; the kill or stop followed all the same."""
    broker: int = 0
    """Kills of the broker under the join."""
    deaths: int = 0
    """Of them those that ended a join, which then found no broker at its start."""
    stops: int = 0

    @property
    def kills(self) -> int:
        """Of the join."""
        return sum(self.instants.values())


class Gauntlet:
    """Runs the join through a log, and kills it all the time."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        log: SoakLog,
        broker: EmbeddedKafka,
        rng: random.Random,
        writer: Callable[[SoakLog, BatchProducer], LogWriter] = LogWriter,
        instants: Mapping[str, int] = INSTANTS,
    ) -> None:
        self._settings, self._folder, self._log, self._broker = settings, folder, log, broker
        self._rng, self._writer, self._instants = rng, writer, instants
        state = folder.state / "das"
        self._shards = [shards_folder(state) / str(shard) for shard in range(settings.das.shards)]
        self._recovery = recovery_folder(state)
        self._drafts: set[tuple[Path, int]] = set()
        self.toll = Toll()

    def run(self, kills: int, on_kill: Callable[[Toll], None]) -> Toll:
        """Kill so many times, then let the join come to the end of the log."""
        portions = kills * PORTIONS_A_LIFE
        writer = self._writer(self._log, BatchProducer(producer_config(self._settings.kafka)))
        first_ms, last_ms = self._log.arrivals_ms
        pace = Pace()
        step_ms = (last_ms - first_ms) // (portions + PORTIONS_A_LIFE) + 1

        def write() -> None:
            for portion in range(portions):
                pace.wait_for(portion)
                writer.write(first_ms + (portion + PORTIONS_A_LIFE) * step_ms)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        while self.toll.kills < kills:
            pace.allow((self.toll.kills + 1) * PORTIONS_A_LIFE)
            self._live()
            on_kill(self.toll)
        pace.allow(portions)
        thread.join()
        writer.end()
        with JoinProcesses(self._settings, self._folder, 1) as processes:
            processes.wait_for_the_end(300.0)
        return self.toll

    def _live(self) -> None:
        """One start of the join, and its end."""
        num = self._rng.choice((1, 2))
        self.toll.processes[num] += 1
        with JoinProcesses(self._settings, self._folder, num) as processes:
            if self._due(self.toll.stops, STOP_EVERY):
                self.toll.stops += 1
                self._at_work(processes)
                processes.stop()
                return
            if self._due(self.toll.broker, BROKER_EVERY):
                self.toll.broker += 1
                self._kill_broker(processes)
                return
            instant = self._rng.choices([*self._instants], [*self._instants.values()])[0]
            self._await(instant, processes)
            processes.kill(self._rng)
        self.toll.instants[instant] += 1
        self._count_drafts()

    def _kill_broker(self, processes: JoinProcesses) -> None:
        """Kill the broker; the join goes on, or ends if it was about to start."""
        self._at_work(processes)
        self._broker.kill()
        time.sleep(self._rng.random())
        self._broker.start()
        time.sleep(self._rng.uniform(0, 2.0))
        self.toll.deaths += any(processes.codes)

    def _due(self, done: int, every: int) -> bool:
        return self.toll.kills >= (done + 1) * every - every // 2

    def _await(self, instant: str, processes: JoinProcesses) -> None:
        if instant == "any":
            processes.sleep(self._rng.uniform(0, 4.0))
        elif instant == "later":
            processes.sleep(self._rng.uniform(2.0, 8.0))
        elif instant == "at work":
            self._at_work(processes)
            processes.sleep(self._rng.uniform(0, 0.5))
        elif instant == "segment write":
            with Watch(*self._shards) as watch:
                self._touched(watch, processes, ".arrow", self._rng.randint(1, 6))
        else:
            with Watch(self._recovery) if self._recovery.exists() else Watch() as watch:
                self._touched(watch, processes, ".sqlite3", self._rng.randint(1, 30))

    def _at_work(self, processes: JoinProcesses) -> None:
        with Watch(*self._shards) as watch:
            self._touched(watch, processes, ".arrow", 1)

    def _touched(self, watch: Watch, processes: JoinProcesses, what: str, times: int) -> None:
        """Wait until files were touched, which an idle join does not do."""
        deadline_s = time.monotonic() + PATIENCE_S
        seen = 0
        while seen < times:
            seen += sum(what in name for name in watch.names(0.1))
            processes.check()
            if time.monotonic() > deadline_s:
                self.toll.idle += 1
                return

    def _count_drafts(self) -> None:
        """Notice segments that were never finished; the next start removes them."""
        found = {
            (path, path.stat().st_mtime_ns)
            for folder in self._shards
            for path in folder.glob(".*.arrow")
        }
        self.toll.half_written += bool(found - self._drafts)
        self._drafts |= found


class Pace:
    """Lets a writer come as far as it may."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._allowed = 0

    def allow(self, portions: int) -> None:
        """Let so many portions be written in all."""
        with self._condition:
            self._allowed = portions
            self._condition.notify_all()

    def wait_for(self, portion: int) -> None:
        """Wait until a portion, counted from 0, may be written."""
        with self._condition:
            self._condition.wait_for(lambda: portion < self._allowed)
