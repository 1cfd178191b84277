"""Runs a Bytewax flow in this process until its input ends or SIGTERM or SIGINT asks it to stop.

A stop is clean: each source sees `stop_requested` and ends where it stands, the last epoch is
committed, and `run_flow` returns. It closes no window and marks no end of a log.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
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

RECOVERY_PARTITIONS = 2
"""Fixed for the life of a recovery store, whatever the number of workers."""

COLLECT_AFTER = (100_000, 20, 100)
"""Objects made since the last look for cycles, and looks before one at older objects."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STOP = threading.Event()


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
    """Whether a signal asked the flow that runs in this process to stop; sources then end."""
    return _STOP.is_set()


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
    """
    config = None
    use_malloc()
    if recovery is not None:
        create_recovery_store(recovery)
        config = RecoveryConfig(recovery, timedelta(0))
    cluster = bool(placement.addresses)
    with stopping_on_signals(), sparing_collector(), ending_if_set_back():
        cli_main(
            flow,
            workers_per_process=placement.workers,
            process_id=placement.process_id if cluster else None,
            addresses=list(placement.addresses) if cluster else None,
            epoch_interval=timedelta(seconds=epoch_s),
            recovery_config=config,
        )


def create_recovery_store(folder: Path) -> None:
    """Make an empty recovery store unless there is one; processes may race, a crash leaves none."""
    if folder.exists():
        return
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    init_db_dir(draft, RECOVERY_PARTITIONS)
    try:
        draft.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(draft)
        if not folder.exists():
            raise


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
