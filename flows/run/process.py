"""One process of a run: `exfm run das|fm-inference|fm-training|vm-training|serve`."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, generate_latest

from flows.report.scrape import LAST_WORDS
from flows.run_folder import RunFolder, write_json
from flows.run_lock import held
from flows.settings import Settings, SettingsError
from models.durable import write_atomically
from monitoring import exporter

if TYPE_CHECKING:
    from flows.runner import Placement

logger = logging.getLogger(__name__)

FLOWS = ("fm-inference", "das", "fm-training", "vm-training")
"""Processes that end with a finite log."""
SERVE = "serve"
HOST = "127.0.0.1"
NO_ADDRESS = (errno.EACCES, errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def run_process(process: str, settings: Settings, folder: RunFolder, placement: Placement) -> None:
    """Run one process until its log has ended or a signal stops it.

    Args:
        process: one of `FLOWS`, or `SERVE`.
        settings: of the run.
        folder: of the run.
        placement: where it stands among several processes of the same flow.
    """
    if process not in (*FLOWS, SERVE):
        raise ValueError(f"process must be one of {', '.join(FLOWS)}, {SERVE}; got {process!r}")
    configure_logging()
    module = None if process == SERVE else import_module(f"flows.{process.replace('-', '_')}")
    with announced(folder, *names(process, placement)) as entry:
        if module is None:
            serve(settings, folder, entry)
            return
        from flows.join.state import may_have_grown
        from flows.kafka.client import ensure_topics

        ensure_topics(settings, may_have_grown=may_have_grown(folder.state / "das"))
        module.run(settings, folder, placement)


def names(process: str, placement: Placement) -> tuple[str, str]:
    """Name of a process among those of its flow, and of the lock that it holds.

    Alone or with others, the first of a flow's processes holds one lock: one group at a time.
    """
    name = f"{process}-{placement.process_id}" if len(placement.addresses) > 1 else process
    return name, name if placement.process_id else process


def serve(settings: Settings, folder: RunFolder, entry: dict[str, object]) -> None:
    """Serve the students of the run, and announce the address once requests are answered.

    Raises:
        SettingsError: the configured address cannot be listened on.
    """
    from flows.inference.teacher import store_path
    from flows.runner import stop_requested, stopping_on_signals
    from onnx_export import server

    serving = settings.serving

    def announce(port: int) -> None:
        address = {"http": f"http://{serving.host}:{port}"}
        write_json(folder.processes / f"{SERVE}.json", {**entry, **address})

    try:
        with stopping_on_signals():
            server.serve(
                store_path(settings, folder),
                [student.name for student in settings.students],
                serving.host,
                serving.port,
                serving.poll_s,
                serving.max_rows,
                announce,
                stop_requested,
            )
    except OSError as error:
        if error.errno not in NO_ADDRESS:
            raise
        where = f"serving.host = {serving.host!r}, serving.port = {serving.port}"
        raise SettingsError(f"{where}: {os.strerror(error.errno or 0)}; name another") from error


@contextmanager
def announced(folder: RunFolder, name: str, lock: str | None = None) -> Iterator[dict[str, object]]:
    """Inside, this process's metrics are served and its address stands in the run's folder.

    At the end its last metrics are left beside the address.

    Args:
        folder: of the run.
        name: of the process.
        lock: of those processes of which one may be there; None: only of this name.

    Raises:
        InUse: such a process of the run is there already.
        OSError: the run's folder cannot be written; `filename` is the file.
    """
    with held(folder.processes / f"{lock or name}.lock", f"{name} of run {folder.root}"):
        port = exporter.start(HOST)
        path, entry = exporter.address(folder.processes, name, HOST, port)
        write_json(path, entry)
        target = [{"targets": [f"{HOST}:{port}"], "labels": {"process": name}}]
        write_atomically(folder.processes / "targets" / f"{name}.json", json.dumps(target).encode())
        try:
            yield entry
        finally:
            leave_metrics(path.with_name(f"{name}.{os.getpid()}{LAST_WORDS}"))


def leave_metrics(path: Path) -> None:
    """Write this process's metrics to a file if that can be done: why it ends matters more."""
    try:
        write_atomically(path, generate_latest(REGISTRY))
    except OSError as error:
        logger.warning("the last metrics are lost: %s: %s", error.filename, error.strerror)


def configure_logging(level: int = logging.INFO) -> None:
    """Log to stderr: for people on a terminal, one plain line a record elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False)
        pattern = "%(message)s"
    else:
        handler = logging.StreamHandler()
        pattern = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level, format=pattern, handlers=[handler], force=True)
    for noisy in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
