"""Where a run keeps what it writes: `runs/<name>/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.durable import write_atomically


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; nothing is created before it is written."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration that the run was started with."""
        return self.root / "config.toml"

    @property
    def broker(self) -> Path:
        """Data and log of the embedded Kafka."""
        return self.root / "kafka"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.root / "logs"

    @property
    def store(self) -> Path:
        """Snapshot store, unless the configuration names another."""
        return self.root / "store"

    @property
    def state(self) -> Path:
        """Recovery stores and segments of the flows."""
        return self.root / "state"

    @property
    def checkpoints(self) -> Path:
        """Trainer checkpoints, a folder a model."""
        return self.root / "checkpoints"

    @property
    def quality(self) -> Path:
        """Quality of each model over the stream: `<model>.json`."""
        return self.root / "quality"

    @property
    def processes(self) -> Path:
        """Addresses of the running processes: `<process>.json`, each written by its own process."""
        return self.root / "processes"

    @property
    def summary(self) -> Path:
        """Every figure of the run's tables."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The run's plots."""
        return self.root / "report.html"


def unwritable(path: object, why: object) -> str:
    """What to say of a file for which there is no room."""
    return f"{path} cannot be written: {why}; make room and start again, nothing is lost"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
