"""What a command line names: a run's folder, its configuration, addresses, a speed.

Errors are one line.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.run_folder import RunFolder
    from flows.settings import Settings
    from onnx_export.store import SnapshotStore

FAILED, MISCONFIGURED, INTERRUPTED = 1, 2, 130
RUNS = Path("runs")
MAX_PORT = 65_535
PLAIN_WIDTH = 160
"""Columns of tables that go to a file or a pipe."""

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file; default: that of the run."),
]
Run = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME|PATH", help="Name below runs/, or a folder."),
]


def console() -> Console:
    """The terminal; what goes elsewhere gets room for whole tables."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def warn(message: str) -> None:
    """Say something on stderr."""
    sys.stderr.write(f"exfm: {message}\n")


def fail(message: str, code: int = MISCONFIGURED) -> NoReturn:
    """Say why on stderr and exit."""
    warn(message)
    sys.exit(code)


def load_settings(path: Path) -> Settings:
    """Settings of a file, with the environment's address of Kafka."""
    from flows.settings import load

    return load(path, dict(os.environ))


def reachable_settings(config: Path | None, folder: RunFolder) -> Settings:
    """Settings of a run with the address of its Kafka, which runs while the run is up."""
    from flows.run import broker_address

    settings = load_settings(config or folder.config)
    if settings.kafka.bootstrap:
        return settings
    bootstrap = broker_address.announced(folder.processes)
    if bootstrap is None:
        fail(
            f"the Kafka of {folder.root} runs only while the run does: start it by "
            f"`exfm up --run {folder.root}`, or name a broker in EXFM_BOOTSTRAP"
        )
    kafka = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    return settings.model_copy(update={"kafka": kafka})


def begin(
    folder: RunFolder, config: Path, *, seed: int = 0, shuffle_teacher: bool = False
) -> Settings:
    """Check a configuration and put it into the run's folder as it will be used."""
    from flows.config_file import dump, seeded
    from flows.settings import load
    from models.durable import write_atomically

    settings = load(config)
    data = config.read_bytes()
    if seed or shuffle_teacher:
        settings = seeded(settings, seed)
        teacher = settings.teacher.model_copy(update={"shuffle_within_domain": shuffle_teacher})
        data = dump(settings.model_copy(update={"teacher": teacher})).encode()
    try:
        write_atomically(folder.config, data)
    except OSError as error:
        fail(f"--run {folder.root} cannot be written: {error.strerror}", FAILED)
    return load_settings(folder.config)


def folder_of(run: str) -> RunFolder:
    """Folder of a run: a path if it looks like one, else a name below `runs/`."""
    from flows.run_folder import RunFolder

    return RunFolder(Path(run) if os.sep in run or run.startswith(".") else RUNS / run)


def new_folder(run: str | None, kind: str) -> RunFolder:
    """A folder that no run has used."""
    folder = folder_of(run or f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.root.exists() and not folder.root.is_dir():
        fail(f"--run {folder.root} is no folder; name another")
    if folder.root.exists() and any(folder.root.iterdir()):
        fail(f"--run {folder.root} holds an earlier run; name another, or remove it")
    return folder


def existing_folder(run: str | None) -> RunFolder:
    """The named run, or the newest one."""
    newest = sorted(RUNS.glob("*/config.toml"), key=lambda path: path.stat().st_mtime)
    if run is None and not newest:
        fail(f"no run below {RUNS}/; name one by --run")
    folder = folder_of(run or newest[-1].parent.name)
    if not folder.root.is_dir():
        fail(f"--run {folder.root} does not exist")
    return folder


def store_of(config: Path | None, folder: RunFolder) -> SnapshotStore:
    """Snapshot store of a run."""
    from flows.inference.teacher import store_path
    from onnx_export.store import SnapshotStore

    settings = load_settings(config or folder.config)
    return SnapshotStore(store_path(settings, folder), settings.store.keep)


def parsed_speed(text: str) -> float | None:
    """Event seconds a second; None for `max`."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        fail(f"--speed must be max or a positive number, got {text!r}")
    return speed


def parsed_addresses(texts: list[str], process_id: int) -> tuple[str, ...]:
    """Addresses of the processes of a flow, of which this one can listen on its own.

    Args:
        texts: `host:port` of each; none: this process alone.
        process_id: position of this one.
    """
    if process_id >= max(1, len(texts)):
        fail(f"--process-id {process_id} must be below the {len(texts)} addresses given")
    for text in texts:
        host, _, port = text.rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 0 < int(port) <= MAX_PORT):
            fail(f"--address must be HOST:PORT with a port from 1 to {MAX_PORT}, got {text!r}")
        if texts.count(text) > 1:
            fail(f"--address {text} must stand there once: each process has its own")
    if texts:
        listen_once(texts[process_id])
    return tuple(texts)


def listen_once(address: str) -> None:
    """See that this process can listen on an address."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror
        fail(f"--address {address}: this process cannot listen there: {why}", FAILED)
