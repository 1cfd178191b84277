"""Errors that speak for themselves: what a user reads of them is one line, and no traceback."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import NoReturn

from flows.run.setup import FAILED, MISCONFIGURED
from flows.run_folder import unwritable

SPEAKING = (
    ("flows.backfill.plan", "BackfillRefused"),
    ("flows.kafka.broker", "BrokerError"),
    ("flows.kafka.lost_offsets", "OffsetLost"),
    ("flows.join.recovery", "RecoveryUnreadable"),
    ("flows.join.recovery", "StateFull"),
    ("flows.kafka.jars", "JarError"),
    ("flows.kafka.client", "BrokerUnreachable"),
    ("flows.learning.gaps", "ExamplesMissing"),
    ("flows.panics", "Disbanded"),
    ("flows.letters.replay", "ReplayRefused"),
    ("flows.kafka.producer", "DeliveryError"),
    ("flows.run_lock", "InUse"),
    ("flows.events.schema_registry", "RegistryError"),
    ("flows.join.segment_folder", "SegmentError"),
    ("flows.join.written_examples", "ExamplesGone"),
    ("flows.join.written_examples", "ExamplesHidden"),
    ("flows.settings", "SettingsError"),
    ("flows.run.supervisor", "ProcessFailed"),
    ("onnx_export.manifest", "SnapshotCorrupt"),
)
"""Errors whose message is all that a user needs: module and class."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def told(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of the first in a chain of causes that speaks for itself, if one does.

    A full disk does, where the error names the file.
    """
    reason: BaseException | None = error
    while reason is not None:
        code = exit_code(reason)
        if code is not None:
            return str(reason), code
        if isinstance(reason, OSError) and reason.errno in NO_ROOM and reason.filename:
            return unwritable(reason.filename, reason.strerror), FAILED
        reason = reason.__cause__
    return None


def end(message: str, code: int) -> NoReturn:
    """Say why on stderr, and end at once.

    Threads of Bytewax may still run, and the interpreter aborts if one asks for it while it ends.
    """
    sys.stderr.write(f"exfm: {message}\n")
    with suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
    os._exit(code)


def exit_code(error: BaseException) -> int | None:
    """Exit code of an error of `SPEAKING`, else None.

    An error of a module that was never imported cannot have been raised, and where only the server
    is installed, most of them cannot be imported.
    """
    for module, name in SPEAKING:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, getattr(loaded, name)):
            return MISCONFIGURED if name == "SettingsError" else FAILED
    return None
