"""Serves this process's metrics on a port of its own, and says where.

Each process writes `<name>.json` into the run's `processes` folder; a Prometheus `file_sd_configs`
entry on `targets/*.json` beside it finds them all.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import start_http_server


def start(host: str = "127.0.0.1", port: int = 0) -> int:
    """Serve `/metrics` in a daemon thread.

    Args:
        host: address to listen on.
        port: 0 takes a free one.

    Returns:
        The port.
    """
    server, _ = start_http_server(port, addr=host)
    return int(server.server_port)


def address(folder: Path, process: str, host: str, port: int) -> tuple[Path, dict[str, object]]:
    """File and content that announce a process in a run's `processes` folder."""
    entry: dict[str, object] = {
        "process": process,
        "pid": os.getpid(),
        "metrics": f"http://{host}:{port}/metrics",
    }
    return folder / f"{process}.json", entry
