"""Runs a Bytewax flow in this process until its input ends or SIGTERM or SIGINT asks it to stop.

A stop is clean: each source sees `stop_requested` and ends where it stands, the last epoch is
committed, and `run_flow` returns. It closes no window and marks no end of a log. Of several
processes of a flow none ends before all do, so a flow whose processes share work passes a stop on.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from flows.allocator import use_malloc
from flows.clock_watch import ending_if_set_back
from flows.panics import telling_whose_fault

logger = logging.getLogger(__name__)

RECOVERY_PARTITIONS = 2
"""Fixed for the life of a recovery store, whatever the number of workers."""

COLLECT_AFTER = (100_000, 20, 100)
"""Objects made since the last look for cycles, and looks before one at older objects."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.1
REMIND_S = 30.0
"""How often a process says that it still waits for the others."""
_STOP = threading.Event()
_READING = threading.Event()


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where this process stands among those that run one flow."""

    process_id: int = 0
    """Position in `addresses`."""
    addresses: tuple[str, ...] = ()
    """`host:port` of every process of the flow; empty: this process alone."""
    workers: int = 1
    """Worker threads of this process."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if not 0 <= self.process_id < max(1, len(self.addresses)):
            raise ValueError(
                f"process_id must be a position in addresses ({len(self.addresses)} given), "
                f"got {self.process_id}"
            )

    @property
    def total_workers(self) -> int:
        """Worker threads of all processes, of which each has as many as this one."""
        return self.workers * max(1, len(self.addresses))


def stop_requested() -> bool:
    """Whether the flow that runs in this process was asked to stop; sources then end.

    They ask before each read, so the first question shows that all processes have found together.
    """
    _READING.set()
    return _STOP.is_set()


def request_stop() -> None:
    """Ask the flow that runs in this process to stop, as a signal does."""
    if not _STOP.is_set():
        logger.info("another process of this flow stops, so this one does")
    _STOP.set()


def run_flow(
    flow: Dataflow, placement: Placement, *, recovery: Path | None, epoch_s: float
) -> None:
    """Run `flow` until every source has ended.

    Args:
        flow: what to run.
        placement: this process's place.
        recovery: folder of the recovery store, shared by all processes, made at the first start;
            None: nothing is kept.
        epoch_s: interval of recovery snapshots.

    Raises:
        Disbanded: another process of the flow is gone.
    """
    config = None
    if recovery is not None:
        create_recovery_store(recovery)
        config = RecoveryConfig(recovery, timedelta(0))
    cluster = bool(placement.addresses)
    with prepared(placement), telling_whose_fault():
        cli_main(
            flow,
            workers_per_process=placement.workers,
            process_id=placement.process_id if cluster else None,
            addresses=list(placement.addresses) if cluster else None,
            epoch_interval=timedelta(seconds=epoch_s),
            recovery_config=config,
        )


@contextmanager
def prepared(placement: Placement) -> Iterator[None]:
    """Inside, a flow can run in this process: what it is stopped by, what it waits for, and memory.

    Args:
        placement: this process's place.
    """
    use_malloc()
    with stopping_on_signals(), leaving_unmet(placement), sparing_collector(), ending_if_set_back():
        yield


def create_recovery_store(folder: Path) -> None:
    """Make an empty recovery store unless there is one; processes may race, a crash leaves none."""
    if folder.exists():
        return
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        init_db_dir(draft, RECOVERY_PARTITIONS)
        draft.rename(folder)
    except OSError:  # another process was first
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `stop_requested`; outside the main thread nothing changes."""
    _STOP.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request_stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leaving_unmet(placement: Placement) -> Iterator[None]:
    """Inside, a stop ends a process at once that still waits for the others of its flow.

    Bytewax waits for them without an end, and lets no handler run meanwhile. Nothing was read yet,
    so nothing is left undone.
    """
    _READING.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if len(placement.addresses) < 2 or not is_main:
        yield
        return
    heard, said = socket.socketpair()
    said.setblocking(False)
    before = signal.set_wakeup_fd(said.fileno(), warn_on_full_buffer=False)
    waiting = threading.Thread(target=_wait_for_others, args=(placement, heard), daemon=True)
    waiting.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        said.close()
        waiting.join()
        heard.close()


def _wait_for_others(placement: Placement, heard: socket.socket) -> None:
    """Until the flow reads: end at a signal, and say from time to time what is missing."""
    others = [a for i, a in enumerate(placement.addresses) if i != placement.process_id]
    begun_s, remind_s = time.monotonic(), 0.0
    while not _READING.is_set():
        if time.monotonic() - begun_s >= remind_s:
            logger.info("waiting for the other processes of this flow: %s", ", ".join(others))
            remind_s += REMIND_S
        if select.select([heard], [], [], LOOK_S)[0]:
            if heard.recv(1):
                logger.info("stopped before the other processes were there")
                os._exit(0)
            return  # the flow has ended


@contextmanager
def sparing_collector() -> Iterator[None]:
    """Let Python look for cycles rarely: thousands of messages a read are thousands of objects.

    Reading a topic costs half the time so; cycles there are few, and found all the same.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _request_stop(_number: int, _frame: FrameType | None) -> None:
    _STOP.set()
