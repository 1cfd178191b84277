"""DAS under `python -m bytewax.run`, which knows nothing of the run's folder.

Bytewax keeps what a restart needs only where `-r` says so. A start without it would begin again at
the beginning of the log, and clear the segments of the earlier one. What else such a process needs
is in flows/run/under_bytewax.py.
"""

from __future__ import annotations

import logging
import math
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from bytewax.run import _parse_args

from flows.join.routing import insist_on_shards
from flows.join.state import is_made, recovery_folder
from flows.runner import Placement
from flows.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

RUNNER = "bytewax.run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What `bytewax.run` was told."""

    recovery: str | None
    """Recovery directory."""
    every_s: float | None
    """Interval of recovery snapshots."""
    placement: Placement
    """Of this process."""

    @staticmethod
    def by(given: Namespace) -> Started:
        """What stands in its arguments, in which it has put the environment for those not given.

        Raises:
            ValueError: the process is none of those whose addresses are given.
        """
        recovery, interval = given.recovery_directory, given.snapshot_interval
        return Started(
            recovery=None if recovery is None else str(recovery),
            every_s=None if interval is None else interval.total_seconds(),
            placement=Placement(
                process_id=given.process_id or 0,
                addresses=tuple(given.addresses.split(";")) if given.addresses else (),
                workers=given.workers_per_process or 1,
            ),
        )


def is_bytewax_run() -> bool:
    """Whether this process is `python -m bytewax.run`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == RUNNER


def insist_on_recovery(state: Path, settings: Settings, started: Started) -> None:
    """Check that a start goes on from the state that is there, if there is one.

    Args:
        state: folder of the join's state.
        settings: of the run.
        started: what `bytewax.run` was told.

    Raises:
        SettingsError: it would not, or snapshots would come at other times than are configured; the
            message has the command that is right.
    """
    recovery, given = recovery_folder(state), started.recovery
    every_s = math.ceil(settings.das.recovery_every_s)
    right = f"python -m {RUNNER} flows.das:flow -r {recovery} -s {every_s} -b 0"
    if given is None and not is_made(state):
        logger.warning(
            "no recovery directory given: this start cannot be followed by another; rather %s",
            right,
        )
        return
    if given is None or Path(given).resolve() != recovery.resolve():
        wrong = "no recovery directory" if given is None else f"recovery directory {given}"
        raise SettingsError(
            f"{wrong} given, but the run keeps its own, and goes on only from there: {right}"
        )
    if started.every_s != every_s:
        raise SettingsError(
            f"a snapshot every {started.every_s:g} s asked for, but das.recovery_every_s = "
            f"{settings.das.recovery_every_s:g}: {right}"
        )


def check_start(state: Path, settings: Settings) -> Placement:
    """This process's place, once what `bytewax.run` was told is checked, if it started the process.

    Raises:
        SettingsError: a worker would have no shard, or the start would not go on.
    """
    if not is_bytewax_run():
        return Placement()
    started = Started.by(_parse_args())
    insist_on_shards(settings.das.shards, started.placement.total_workers)
    insist_on_recovery(state, settings, started)
    return started.placement
