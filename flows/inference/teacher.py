"""Which teacher snapshot scores an impression, and the snapshots that are open. No torch.

`newest` takes what the store points at. `as_of` lets event time decide, so that a replay of any
speed chooses the same: an impression at t is scored by the last snapshot of t - lag, once the
trainer has said that no further one of that time will appear.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from flows.run_folder import RunFolder
from flows.settings import Settings, Teacher
from monitoring.metrics import FM_SWAPS, FM_VERSION
from onnx_export.manifest import SnapshotCorrupt
from onnx_export.session import Scorer
from onnx_export.store import SnapshotStore

logger = logging.getLogger(__name__)

MODEL = "fm"
"""The teacher's name in the snapshot store."""

Integers = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def store_path(settings: Settings, folder: RunFolder) -> Path:
    """Where the run's snapshot store is."""
    return Path(settings.store.path) if settings.store.path else folder.store


class AsOf:
    """Chooses by event time alone."""

    def __init__(self, store: SnapshotStore, teacher: Teacher) -> None:
        self.store = store
        self._lag_ms = teacher.lag_ms
        self._every_ms = teacher.snapshot_every_ms

    def boundaries(self, ts_ms: Integers) -> Integers:
        """The snapshot boundary that each event time asks for, shape [N]."""
        return (ts_ms - self._lag_ms) // self._every_ms * self._every_ms

    def decided(self, boundaries: Integers) -> Mask:
        """Whether the trainer has decided what was published up to each boundary, shape [N]."""
        decided: Mask = boundaries <= self.store.frontier(MODEL)
        return decided

    def version(self, boundary_ms: int) -> int | None:
        """The last snapshot at or below a decided boundary, or None if there never was one.

        Raises:
            LookupError: it was retired.
        """
        return self.store.as_of(MODEL, boundary_ms)


def require_scored(store: SnapshotStore, ts_ms: Integers) -> None:
    """Check that impressions whose snapshot was retired were scored by an earlier process.

    A snapshot of boundary b is published when `examples` is complete up to b, and so when the
    predictions of every impression before b stand in the topic, progress behind them. A later
    impression must find its snapshot: it was retired too soon.

    Args:
        store: of snapshots.
        ts_ms: event times of impressions whose snapshot is gone, shape [N].

    Raises:
        RuntimeError: one of them was not scored yet.
    """
    pointer = store.pointer(MODEL)
    if len(ts_ms) and (pointer is None or ts_ms.max() >= pointer.newest):
        raise RuntimeError(
            f"{store.root}: the teacher's snapshot for an impression of {ts_ms.max()} is gone, but "
            f"only those before {pointer and pointer.newest} (the newest snapshot) were scored; "
            "snapshots that teacher.lag_s still asks for must be kept"
        )


class Scorers:
    """Open teacher snapshots, the most recently used few."""

    def __init__(self, store: SnapshotStore, num_open: int = 4) -> None:
        self._store = store
        self._num_open = num_open
        self._open: OrderedDict[int, Scorer] = OrderedDict()
        self._newest: int | None = None
        self._refused: int | None = None

    def get(self, version: int) -> Scorer:
        """The scorer of a version.

        Raises:
            FileNotFoundError: there is no such version, or no longer.
            SnapshotCorrupt: its files are not what was published.
        """
        if version not in self._open:
            self._open[version] = Scorer.open(self._store.path(MODEL, version))
            FM_SWAPS.inc()
            FM_VERSION.set(version / 1000)
            while len(self._open) > self._num_open:
                self._open.popitem(last=False)
        self._open.move_to_end(version)
        return self._open[version]

    def newest(self) -> int | None:
        """The version that the store points at, opened; the last good one if that fails."""
        version = self._store.latest(MODEL)
        if version is None or version in (self._newest, self._refused):
            return self._newest
        try:
            self.get(version)
        except FileNotFoundError:  # retired since; the next call finds its successor
            return self._newest
        except SnapshotCorrupt as error:
            logger.error("teacher snapshot %s refused: %s", version, error)
            self._refused = version
            return self._newest
        self._newest = version
        return version
