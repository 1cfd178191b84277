"""Processes of a flow, as tests start and kill them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.settings import Settings
from flows.tethered import TETHER

PROCESS = """
import importlib
import sys
from pathlib import Path
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings
module, settings, folder, process_id, addresses = sys.argv[1:]
placement = Placement(process_id=int(process_id), addresses=tuple(addresses.split()))
run = importlib.import_module(module).run
run(Settings.model_validate_json(settings), RunFolder(Path(folder)), placement)
"""


@contextmanager
def started(
    module: str,
    settings: Settings,
    folder: Path,
    process_id: int = 0,
    addresses: str = "",
    first: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a module's flow, after some code; gone at the end."""
    arguments = [module, settings.model_dump_json(), str(folder), str(process_id), addresses]
    process = subprocess.Popen(tethered([sys.executable, "-c", first + PROCESS, *arguments]))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def tethered(command: list[str]) -> list[str]:
    """The command, such that it ends with the tests, however these end."""
    return [sys.executable, "-c", TETHER, str(os.getpid()), *command]


def free_addresses(num: int) -> str:
    """Addresses whose ports were free a moment ago, as `started` takes them."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return " ".join(f"127.0.0.1:{port}" for port in ports)
