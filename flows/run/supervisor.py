"""Keeps the processes of a run alive, and leaves none behind.

A group is one process, or several that only work together and restart as a whole. Exit code 0 means
finished; anything else is a death, and the group starts again after a pause that grows. A group
that dies again and again, or of its configuration (exit code 2), ends the run with the end of its
log.

Nothing happens between two calls of `poll`. Children live in sessions of their own (Ctrl-C reaches
the supervisor alone, which then stops them in order) and end with the supervisor, even if that is
killed -9.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from flows.kafka.broker import EmbeddedKafka
from flows.tethered import TetheredProcess

logger = logging.getLogger(__name__)

BROKER = "broker"
STOP_S = 15.0
"""After this, processes that were asked to stop are killed."""
TAIL_LINES = 15
REFUSED = 2
"""Exit code that says that the configuration is wrong: starting again would not help."""


class ProcessFailed(RuntimeError):
    """A process died for good; the message holds the end of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """How a death is answered."""

    first_s: float = 0.2
    """Pause before the first restart; it doubles with each death within `within_s`."""
    longest_s: float = 5.0
    deaths: int = 5
    """So many deaths within `within_s` end the run."""
    within_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What to start."""

    name: str
    commands: Callable[[], Sequence[Sequence[str]]]
    """A command line a process; asked again at each start, so that ports can be chosen anew."""
    restart: bool = True
    """False: a death ends the run."""


class Member:
    """A group and its processes at this moment."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.processes: list[TetheredProcess] = []
        self.deaths: deque[float] = deque()
        self.num_restarts = 0
        self.start_at_s: float | None = None
        """Monotonic time of the next start, None if none is due."""
        self.killed = False

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def codes(self) -> list[int | None]:
        """Exit code of each process, None while it runs."""
        return [p.exit_code for p in self.processes]

    @property
    def finished(self) -> bool:
        """Whether every process ended with 0."""
        return bool(self.processes) and all(code == 0 for code in self.codes)

    @property
    def state(self) -> str:
        """One word for people."""
        if self.start_at_s is not None:
            return "restarting"
        if not self.processes:
            return "stopped"
        return "finished" if self.finished else "running"


class Supervisor:
    """Starts groups, restarts what dies, stops everything; a context manager."""

    def __init__(
        self,
        logs: Path,
        environ: Mapping[str, str],
        *,
        broker: EmbeddedKafka | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            logs: folder of `<process>.log`, appended to.
            environ: environment of the children.
            broker: a running broker to restart and to stop, last of all.
            backoff: how deaths are answered.
        """
        self._logs = logs
        self._environ = dict(environ)
        self._broker = broker
        self._backoff = backoff or Backoff()
        self._members: dict[str, Member] = {}
        self._broker_restarts = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, group: Group) -> None:
        """Start a group."""
        if group.name in self._members or group.name == BROKER:
            raise ValueError(f"process group {group.name!r} was added before")
        self._members[group.name] = Member(group)
        self._start(self._members[group.name])

    def poll(self) -> None:
        """Notice deaths, and restart what is due.

        Raises:
            ProcessFailed: a group died too often, or must not be restarted.
        """
        if self._broker is not None and not self._broker.running:
            self._restart_broker(self._broker)
        for member in self._members.values():
            if member.start_at_s is not None:
                if time.monotonic() >= member.start_at_s:
                    self._start(member)
            elif any(code not in (None, 0) for code in member.codes):
                self._bury(member)

    def finished(self, *names: str) -> bool:
        """Whether all processes of these groups ended with exit code 0."""
        return all(self._members[name].finished for name in names)

    def states(self) -> dict[str, tuple[str, int]]:
        """State and number of restarts of each group, the broker first if it is ours."""
        found = {m.name: (m.state, m.num_restarts) for m in self._members.values()}
        if self._broker is None:
            return found
        broker = "running" if self._broker.running else "restarting"
        return {BROKER: (broker, self._broker_restarts), **found}

    def pids(self, name: str) -> list[int]:
        """Ids of a group's running processes."""
        if name == BROKER:
            return [self._broker.pid] if self._broker and self._broker.running else []
        return [p.pid for p in self._members[name].processes if p.exit_code is None]

    def kill(self, name: str) -> None:
        """End a group or the broker as a crash would (kill -9); `poll` restarts it at once."""
        if name == BROKER:
            if self._broker is None:
                raise ValueError("the broker is not ours to kill")
            self._broker.kill()
            return
        member = self._members[name]
        member.killed = True
        end(member.processes, signal.SIGKILL, STOP_S)

    def stop(self, name: str) -> None:
        """Stop a group cleanly and leave it stopped."""
        member = self._members[name]
        end(member.processes, signal.SIGTERM, STOP_S)
        member.processes, member.start_at_s = [], None

    def restart(self, name: str) -> None:
        """Stop a group cleanly if it runs, and start it."""
        self.stop(name)
        self._start(self._members[name])

    def close(self) -> None:
        """Stop everything, the broker last; further signals do not interrupt it."""
        with deaf():
            running = [p for m in self._members.values() for p in m.processes]
            end(running, signal.SIGTERM, STOP_S)
            self._members.clear()
            if self._broker is not None:
                self._broker.stop()

    def _start(self, member: Member) -> None:
        commands = member.group.commands()
        member.start_at_s, member.killed, member.processes = None, False, []
        self._logs.mkdir(parents=True, exist_ok=True)
        for position, command in enumerate(commands):
            suffix = f"-{position}" if len(commands) > 1 else ""
            log = self._logs / f"{member.name}{suffix}.log"
            member.processes.append(TetheredProcess(command, log=log, environ=self._environ))

    def _bury(self, member: Member) -> None:
        """Answer a death: end what is left of the group, then plan its start or give up."""
        codes = [code for code in member.codes if code is not None]
        end(member.processes, signal.SIGKILL, STOP_S)
        now_s = time.monotonic()
        if not member.killed:
            member.deaths.append(now_s)
        while member.deaths and member.deaths[0] < now_s - self._backoff.within_s:
            member.deaths.popleft()
        hopeless = REFUSED in codes or not member.group.restart
        if hopeless or len(member.deaths) >= self._backoff.deaths:
            raise ProcessFailed(self._epitaph(member, codes))
        doubled = self._backoff.first_s * 2 ** max(0, len(member.deaths) - 1)
        pause_s = 0.0 if member.killed else min(doubled, self._backoff.longest_s)
        member.start_at_s = now_s + pause_s
        member.num_restarts += 1
        logger.warning("%s ended with %s, restarting in %.1f s", member.name, codes, pause_s)

    def _restart_broker(self, broker: EmbeddedKafka) -> None:
        logger.warning("the broker ended, restarting it")
        broker.kill()
        broker.start()
        self._broker_restarts += 1
        for member in self._members.values():  # they may have died of its absence
            member.deaths.clear()

    def _epitaph(self, member: Member, codes: list[int]) -> str:
        logs = sorted(self._logs.glob(f"{member.name}*.log"), key=lambda p: p.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").splitlines()[-TAIL_LINES:]
        times = f"{len(member.deaths)} times within {self._backoff.within_s:.0f} s, "
        often = times if len(member.deaths) > 1 else ""
        return "\n".join(
            [f"{member.name} died {often}exit code {codes}; the end of {logs[-1]}:", *lines]
        )


def end(processes: Sequence[TetheredProcess], signal_number: int, timeout_s: float) -> None:
    """Send a signal to all, wait for their end, and kill what is left after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    for process in processes:
        process.send(signal_number)
    for process in processes:
        if not process.wait(max(0.0, deadline_s - time.monotonic())):
            logger.warning("process %d did not stop, killing it", process.pid)
            process.send(signal.SIGKILL)
            process.wait()


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM inside."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt as SIGINT does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
