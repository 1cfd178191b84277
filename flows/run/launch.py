"""Everything that a run needs, started under one supervisor: broker, topics, flows, server."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.join.state import may_have_grown
from flows.kafka.broker import HOST, EmbeddedKafka, free_port
from flows.kafka.client import ensure_topics
from flows.report.scrape import Scraper
from flows.run import broker_address
from flows.run.process import FLOWS, SERVE
from flows.run.supervisor import Group, Supervisor, interruptible
from flows.run_folder import RunFolder
from flows.run_lock import held
from flows.settings import Settings

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A run whose processes are up."""

    settings: Settings
    """With the bootstrap address of the broker."""
    folder: RunFolder
    supervisor: Supervisor
    scraper: Scraper

    def wait(
        self,
        done: Callable[[], bool],
        *,
        on_tick: Callable[[], None] = lambda: None,
        every_s: float = POLL_S,
    ) -> None:
        """Keep everything running until `done`.

        Raises:
            ProcessFailed: a process died for good.
        """
        while not done():
            self.supervisor.poll()
            on_tick()
            time.sleep(every_s)

    @property
    def drained(self) -> bool:
        """Whether every flow has come to the end of its log."""
        return self.supervisor.finished(*FLOWS)


@contextmanager
def launched(
    settings: Settings, folder: RunFolder, *, das_processes: int = 1
) -> Iterator[Launched]:
    """Start everything; at the end of the block everything is stopped, however it ends.

    Args:
        settings: an empty `kafka.bootstrap` starts a broker in the run's folder.
        folder: holds `config.toml` already.
        das_processes: processes that share the join.

    Raises:
        InUse: the run is up already.
    """
    with interruptible(), ExitStack() as stack:
        stack.enter_context(held(folder.root / ".lock", f"run {folder.root}"))
        broker = None
        if not settings.kafka.bootstrap:
            broker = EmbeddedKafka(folder.broker)
            stack.callback(broker.stop)
            broker.start()
            kafka = settings.kafka.model_copy(update={"bootstrap": broker.bootstrap})
            settings = settings.model_copy(update={"kafka": kafka})
        forget_addresses(folder.processes)
        address = broker_address.announce(folder.processes, settings.kafka.bootstrap)
        stack.callback(address.unlink, missing_ok=True)
        ensure_topics(settings, may_have_grown=may_have_grown(folder.state / "das"))
        environ = {**os.environ, "EXFM_BOOTSTRAP": settings.kafka.bootstrap}
        supervisor = stack.enter_context(Supervisor(folder.logs, environ, broker=broker))
        for process in (*FLOWS, SERVE):
            supervisor.add(process_group(process, folder, das_processes))
        scraper = stack.enter_context(Scraper(folder.processes))
        yield Launched(settings=settings, folder=folder, supervisor=supervisor, scraper=scraper)


def forget_addresses(processes: Path) -> None:
    """Remove what processes of an earlier start announced."""
    for path in (
        *processes.glob("*.json"),
        *processes.glob("*.prom"),
        *processes.glob("targets/*"),
    ):
        path.unlink()


def process_group(process: str, folder: RunFolder, das_processes: int = 1) -> Group:
    """One of the run's processes; `das` may be several that share the work."""
    num = das_processes if process == "das" else 1

    def commands() -> Sequence[Sequence[str]]:
        if num == 1:
            return [exfm("run", process, folder=folder)]
        addresses = [f"--address={HOST}:{free_port()}" for _ in range(num)]
        return [
            exfm("run", process, f"--process-id={i}", *addresses, folder=folder) for i in range(num)
        ]

    return Group(name=process, commands=commands)


def exfm(*arguments: str, folder: RunFolder) -> list[str]:
    """Command line of a child: `exfm ARGUMENTS` on the run's folder and configuration."""
    run = [f"--config={folder.config}", f"--run={folder.root}"]
    return [sys.executable, "-m", "flows.cli", *arguments, *run]
