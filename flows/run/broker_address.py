"""Where the Kafka of a run that is up can be reached: `processes/broker.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

from flows.run_folder import write_json

NAME = "broker.json"


def announce(processes: Path, bootstrap: str) -> Path:
    """Write the address; it holds as long as this process, which keeps the broker up."""
    path = processes / NAME
    write_json(path, {"process": "broker", "pid": os.getpid(), "bootstrap": bootstrap})
    return path


def announced(processes: Path) -> str | None:
    """The address; None if the run is not up."""
    try:
        entry = json.loads((processes / NAME).read_bytes())
        return str(entry["bootstrap"]) if psutil.pid_exists(int(entry["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
