"""Processes of the join over the benchmark's topics, watched while they run."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.config_file import dump
from flows.kafka.broker import HOST, free_port
from flows.report.scrape import Values, announced, fetch, last_words, parse
from flows.run.launch import exfm
from flows.run_folder import RunFolder
from flows.settings import Settings
from flows.tethered import TetheredProcess
from models.durable import write_atomically

EVERY_S = 0.25
"""How often the processes are asked for their metrics."""
STOP_S = 30.0
READ = "exfm_source_events_total"


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The processes at one moment, summed."""

    at_s: float
    """Monotonic."""
    cpu_s: tuple[float, ...]
    """User and system time of each process."""
    events: float
    """Read so far."""
    events_of: tuple[float, ...]
    """The same of each process."""
    closed: float
    """Examples emitted so far."""
    pending: float
    """Impressions whose window is open."""
    snapshots: float
    """Recovery snapshots of a shard so far."""
    snapshot_s: float
    """Time that they took."""


class Job:
    """A run of the join."""

    def __init__(self, settings: Settings, folder: Path, processes: int, recovery: bool) -> None:
        self.folder = RunFolder(folder)
        self.folder.processes.mkdir(parents=True, exist_ok=True)
        self.looks: list[Look] = []
        """Since the start, oldest first."""
        write_atomically(self.folder.config, dump(settings).encode())
        self._names = ["das"] if processes == 1 else [f"das-{i}" for i in range(processes)]
        self._recovery = recovery
        self._processes: list[TetheredProcess] = []
        self._cpu_s: list[float] = []
        self._metrics: dict[str, Values] = {}
        self.started_s = 0.0
        self.ended_s = 0.0

    def start(self) -> None:
        """Start the processes."""
        self.looks.clear()
        self._metrics.clear()
        self._cpu_s = [0.0] * len(self._names)
        self.started_s = time.monotonic()
        self._processes = [
            TetheredProcess(command, log=self.folder.root / f"{name}.log")
            for name, command in zip(self._names, self._commands(), strict=True)
        ]

    def watch(self, until: Callable[[Look], bool], within_s: float) -> Look:
        """Look on until something is the case, or all processes have ended.

        Raises:
            RuntimeError: it was not within `within_s`, or a process failed.
        """
        deadline_s = time.monotonic() + within_s
        while True:
            ended = all(process.exit_code is not None for process in self._processes)
            look = self._look()
            if until(look):
                return look
            codes = [process.exit_code for process in self._processes]
            if any(code not in (None, 0) for code in codes):
                raise RuntimeError(f"the join ended with {codes}: {self.folder.root}/*.log")
            if ended:
                self.ended_s = time.monotonic()
                return look
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"not within {within_s:.0f} s: {look}")
            time.sleep(EVERY_S)

    def end(self, number: int = signal.SIGKILL) -> float:
        """Send all processes a signal; seconds until they had ended."""
        began_s = time.monotonic()
        for process in self._processes:
            process.send(number)
        for process in self._processes:
            if not process.wait(STOP_S):
                process.send(signal.SIGKILL)
                process.wait()
        return time.monotonic() - began_s

    def _look(self) -> Look:
        for place, name in enumerate(self._names):
            self._see(place, name)
        at_s = time.monotonic()
        return self._keep(
            Look(
                at_s=at_s,
                cpu_s=tuple(self._cpu_s),
                events=self.total(READ),
                events_of=tuple(sum_of(self._metrics.get(name, {}), READ) for name in self._names),
                closed=self.total("exfm_das_windows_closed_total"),
                pending=self.total("exfm_das_pending_impressions"),
                snapshots=self.total("exfm_das_snapshot_seconds_count"),
                snapshot_s=self.total("exfm_das_snapshot_seconds_sum"),
            )
        )

    @property
    def answers(self) -> bool:
        """Whether every process has told its metrics."""
        return len(self._metrics) == len(self._names)

    def total(self, metric: str) -> float:
        """Sum of a metric over labels and processes, as last seen."""
        return sum(sum_of(found, metric) for found in self._metrics.values())

    def _keep(self, look: Look) -> Look:
        self.looks.append(look)
        return look

    def _see(self, place: int, name: str) -> None:
        """CPU time and metrics of a process, or what they were at its end."""
        process = self._processes[place]
        path = self.folder.processes / f"{name}.json"
        found = announced(path)
        if found is None or found[0] != process.pid:
            return
        try:
            times = psutil.Process(process.pid).cpu_times()
            self._cpu_s[place] = max(self._cpu_s[place], times.user + times.system)
        except psutil.NoSuchProcess:
            pass
        text = last_words(path, process.pid) or fetch(found[1])
        if text is not None:
            self._metrics[name] = parse(text)

    def _commands(self) -> Sequence[Sequence[str]]:
        if not self._recovery:
            paths = (str(self.folder.config), str(self.folder.root))
            return [[sys.executable, "-m", "benchmarks.das.unsaved", *paths]]
        if len(self._names) == 1:
            return [exfm("run", "das", folder=self.folder)]
        addresses = [f"--address={HOST}:{free_port()}" for _ in self._names]
        return [
            exfm("run", "das", f"--process-id={i}", *addresses, folder=self.folder)
            for i in range(len(self._names))
        ]


def sum_of(found: Values, metric: str) -> float:
    """Sum of a metric over its labels."""
    return sum(value for (name, _), value in found.items() if name == metric)


@contextmanager
def started(
    settings: Settings, folder: Path, *, processes: int = 1, recovery: bool = True
) -> Iterator[Job]:
    """A run that has just been started; nothing of it runs at the end."""
    job = Job(settings, folder, processes, recovery)
    job.start()
    try:
        yield job
    finally:
        job.end()
