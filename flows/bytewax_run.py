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
from pathlib import Path

from flows.das_state import is_made, recovery_folder
from flows.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

RUNNER = "bytewax.run"
VARIABLE = "BYTEWAX_RECOVERY_DIRECTORY"
"""What Bytewax takes where there is no `-r`."""


def is_bytewax_run() -> bool:
    """Whether this process is `python -m bytewax.run`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == RUNNER


def insist_on_recovery(
    state: Path, settings: Settings, arguments: Sequence[str], environ: Mapping[str, str]
) -> None:
    """Check that a start goes on from the state that is there, if there is one.

    Args:
        state: folder of the join's state.
        settings: of the run.
        arguments: of `bytewax.run`.
        environ: of the process.

    Raises:
        SettingsError: it would not; the message has the command that does.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-r", "--recovery-directory", default=environ.get(VARIABLE))
    given = parser.parse_known_args(list(arguments))[0].recovery_directory
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
    """As `insist_on_recovery`, for this process, if `bytewax.run` started it."""
    if is_bytewax_run():
        insist_on_recovery(state, settings, sys.argv[1:], os.environ)
