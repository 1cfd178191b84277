"""Scores requests with the newest snapshots, and swaps each new one in under load. No torch.

Run by `exfm run serve`. One thread answers requests; new versions are loaded, checked and warmed in
another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

import uvloop

from onnx_export.endpoints import Endpoints
from onnx_export.http import Connection
from onnx_export.live import LiveModels
from onnx_export.store import SnapshotStore

logger = logging.getLogger(__name__)

STOP_POLL_S = 0.05
DRAIN_S = 5.0
"""Time that requests which have begun, and answers not yet sent, get at a stop."""


def serve(
    store_path: Path,
    models: Sequence[str],
    host: str,
    port: int,
    poll_s: float,
    max_rows: int,
    on_ready: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Serve until told to stop.

    Args:
        store_path: folder of the snapshot store; it may not exist yet.
        models: names to serve; empty: all that the store has.
        host: address to listen on.
        port: 0 takes a free one.
        poll_s: how often the store is asked for a newer version.
        max_rows: candidates a request may hold.
        on_ready: called with the port once requests are answered; models may still be missing.
        should_stop: asked every `STOP_POLL_S`; True answers what has begun, closes and returns.

    Raises:
        OSError: the address cannot be listened on.
    """
    live = LiveModels(SnapshotStore(store_path), models)
    endpoints = Endpoints(live, version=server_version(), max_rows=max_rows)
    uvloop.run(_serve(live, endpoints, host, port, poll_s, on_ready, should_stop))


async def _serve(
    live: LiveModels,
    endpoints: Endpoints,
    host: str,
    port: int,
    poll_s: float,
    on_ready: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    loop = asyncio.get_running_loop()
    connections: set[Connection] = set()
    await live.refresh()
    listener = await loop.create_server(lambda: Connection(endpoints, connections), host, port)
    refreshing = asyncio.create_task(_refresh_for_ever(live, poll_s))
    try:
        on_ready(listener.sockets[0].getsockname()[1])
        while not should_stop():
            await asyncio.sleep(STOP_POLL_S)
    finally:
        listener.close()
        refreshing.cancel()
        await _drain(connections)
        await asyncio.gather(refreshing, return_exceptions=True)


async def _drain(connections: set[Connection]) -> None:
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + DRAIN_S
    for connection in list(connections):
        connection.stop()
    while connections and loop.time() < deadline_s:
        await asyncio.sleep(STOP_POLL_S)
    for connection in list(connections):
        connection.abort()
    await asyncio.sleep(0)


async def _refresh_for_ever(live: LiveModels, poll_s: float) -> None:
    while True:
        try:
            await live.refresh()
        except Exception:  # what serves goes on serving
            logger.exception("the store could not be read")
        await asyncio.sleep(poll_s)


def server_version() -> str:
    """Version of the installed project."""
    try:
        return installed_version("exfm")
    except PackageNotFoundError:
        return "0"
