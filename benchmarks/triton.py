"""Starts the server of a finished run, and lets tritonclient score against it.

    python -m benchmarks.triton runs/NAME PYTHON

PYTHON is the interpreter of an environment that has `tritonclient[http]`; `make triton` makes one.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from flows.run.launch import exfm
from flows.run.process import SERVE
from flows.run.scoring_client import Client, address
from flows.run.supervisor import Group, Supervisor
from flows.run_folder import RunFolder
from flows.settings import load

SCRIPT = Path(__file__).with_name("triton_client.py")
READY_TIMEOUT_S = 60.0
POLL_S = 0.1


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with snapshots.")],
    python: Annotated[Path, typer.Argument(help="Interpreter that has tritonclient.")],
) -> None:
    """Exit code 0 if every student was scored, JSON and binary alike."""
    folder = RunFolder(run)
    students = [student.name for student in load(folder.config).students]
    announced = folder.processes / f"{SERVE}.json"
    announced.unlink(missing_ok=True)
    with Supervisor(folder.logs, {}) as supervisor:
        supervisor.add(Group(name=SERVE, commands=lambda: [exfm("run", SERVE, folder=folder)]))
        wait_until_ready(announced, supervisor)
        server = urlsplit(address(announced)).netloc
        raise typer.Exit(subprocess.call([python, SCRIPT, server, *students]))


def wait_until_ready(announced: Path, supervisor: Supervisor) -> None:
    """Poll the server's readiness.

    Raises:
        TimeoutError: it is not ready in time.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    with closing(Client(announced)) as client:
        while time.monotonic() < deadline_s:
            supervisor.poll()
            try:
                if client.call("GET", "/v2/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(POLL_S)
    raise TimeoutError(f"{announced}: the server is not ready after {READY_TIMEOUT_S:g} s")


if __name__ == "__main__":
    typer.run(main)
