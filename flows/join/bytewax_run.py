"""DAS under `python -m bytewax.run`, which knows nothing of the run's folder.

Bytewax keeps what a restart needs only where `-r` says so. A start without it would begin again at
the beginning of the log, and clear the segments of the earlier one.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.join.routing import insist_on_shards
from flows.join.state import is_made, recovery_folder
from flows.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

RUNNER = "bytewax.run"
OPTIONS = (
    ("-r", "--recovery-directory", "BYTEWAX_RECOVERY_DIRECTORY"),
    ("-w", "--workers-per-process", "BYTEWAX_WORKERS_PER_PROCESS"),
    ("-a", "--addresses", "BYTEWAX_ADDRESSES"),
)
"""Of the runner: what matters here, with the variable of the environment for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What `bytewax.run` was told."""

    recovery: str | None
    """Recovery directory."""
    workers: int
    """Worker threads of all processes."""

    @staticmethod
    def by(arguments: Sequence[str], environ: Mapping[str, str]) -> Started:
        """Read the arguments, and the environment that stands for those not given."""
        parser = argparse.ArgumentParser(add_help=False)
        for short, name, variable in OPTIONS:
            parser.add_argument(short, name, default=environ.get(variable))
        given = parser.parse_known_args(list(arguments))[0]
        processes = len((given.addresses or "alone").split(";"))
        workers = int(given.workers_per_process or 1) * processes
        return Started(recovery=given.recovery_directory, workers=workers)


def is_bytewax_run() -> bool:
    """Whether this process is `python -m bytewax.run`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == RUNNER


def insist_on_recovery(state: Path, settings: Settings, given: str | None) -> None:
    """Check that a start goes on from the state that is there, if there is one.

    Args:
        state: folder of the join's state.
        settings: of the run.
        given: recovery directory of this start.

    Raises:
        SettingsError: it would not; the message has the command that does.
    """
    recovery = recovery_folder(state)
    if given is not None and Path(given).resolve() == recovery.resolve():
        return
    every_s = math.ceil(settings.das.recovery_every_s)
    right = f"python -m {RUNNER} flows.das:flow -r {recovery} -s {every_s} -b 0"
    wrong = "no recovery directory" if given is None else f"recovery directory {given}"
    if given is not None or is_made(state):
        raise SettingsError(
            f"{wrong} given, but the run keeps its own, and goes on only from there: {right}"
        )
    logger.warning("%s given: this start cannot be followed by another; rather %s", wrong, right)


def check_start(state: Path, settings: Settings) -> None:
    """Check what `bytewax.run` was told, if it started this process.

    Raises:
        SettingsError: a worker would have no shard, or the start would not go on.
    """
    if is_bytewax_run():
        started = Started.by(sys.argv[1:], os.environ)
        insist_on_shards(settings.das.shards, started.workers)
        insist_on_recovery(state, settings, started.recovery)
