"""The benchmark of the join, part by part: `exfm bench das`.

Each part runs in a process of its own and under a time limit, one after the other; one that fails
or runs out of time is a figure that says so, and the others go on.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.das.engine import EngineFailed
from benchmarks.das.environments import PACKAGES, flink_kafka_jar, python_of
from benchmarks.das.figures import Figure, unmeasured
from benchmarks.das.picture import picture
from models.durable import write_atomically

CHECKOUT = Path(__file__).resolve().parents[2]
WORK = CHECKOUT / ".cache" / "das"
"""Events, kept from run to run; the peers' environments are beside it."""
ROWS = 1_000_000
PARTS = {
    "files": 1800.0,
    "kafka": 2700.0,
    "recovery": 900.0,
    "latency": 240.0,
    "pending": 240.0,
    "buckets": 600.0,
    "exchange": 120.0,
}
"""Time limit of each part in seconds, in the order in which they run; a slow machine keeps it."""
TERMINATED = 143


def bench(rows: int, only: Sequence[str], work_folder: Path, console: Console) -> list[Figure]:
    """Figures of all parts, or of those in `only`.

    Args:
        rows: impressions of a full-size part.
        only: names of parts; empty: all.
        work_folder: for events and scratch files.
        console: for the progress.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # parts end with this process
    work_folder.mkdir(parents=True, exist_ok=True)
    install(only or PARTS.keys(), console)
    figures: list[Figure] = []
    for part, most_s in PARTS.items():
        if not only or part in only:
            console.rule(f"[bold]{part}[/] (at most {most_s:.0f} s)", align="left")
            figures += figures_of(part, rows, work_folder, most_s)
    return figures


def install(parts: Collection[str], console: Console) -> None:
    """Install the peers that some parts need, which counts against no part's time limit."""
    needed = {"files": tuple(PACKAGES), "kafka": ("flink",)}
    try:
        for peer in sorted({peer for part in parts for peer in needed.get(part, ())}):
            python_of(peer)
        if "kafka" in parts:
            flink_kafka_jar()
    except EngineFailed as error:
        console.print(f"a peer is missing, the figures will say so: {error}", markup=False)


def figures_of(part: str, rows: int, work_folder: Path, limit_s: float) -> list[Figure]:
    """Figures of one part, run by `benchmarks.das.part`; a single unmet one if it fails."""
    out = work_folder / f"{part}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.das.part", part, f"--rows={rows}"]
    command += [f"--work={work_folder}", f"--out={out}"]
    why = ""
    try:
        code = run_apart(command, work_folder, limit_s)
        if code != 0:
            why = f"exit code {code}, see above"
    except subprocess.TimeoutExpired:
        why = f"not finished within {limit_s:.0f} s"
    if why:
        return [unmeasured(part, "", why, bar="runs to its end")]
    return [Figure(**figure) for figure in json.loads(out.read_text())]


def run_apart(command: Sequence[str], work_folder: Path, limit_s: float) -> int:
    """Run a program, whose temporary files go with it however it ends; its exit code.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit_s`, and was killed.
    """
    with tempfile.TemporaryDirectory(
        prefix="scratch-", dir=work_folder, ignore_cleanup_errors=True
    ) as scratch:
        environ = {**os.environ, "TMPDIR": scratch}
        process = subprocess.Popen(command, cwd=CHECKOUT, env=environ, start_new_session=True)
        try:
            return process.wait(limit_s)
        finally:
            kill_session(process.pid)
            process.wait()


def kill_session(leader: int) -> None:
    """End all processes that a session leader, or what it started, left running."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.send_signal(signal.SIGKILL)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def summary(figures: Sequence[Figure], rows: int, seconds: float) -> dict[str, Any]:
    """Everything, for `--summary`."""
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds)),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "met": all(figure.met is not False for figure in figures),
        "figures": [figure.as_dict() for figure in figures],
    }


def table(figures: Sequence[Figure]) -> Table:
    """Figures beside their bars."""
    shown = Table(title="The join of labels", title_justify="left")
    for head in ("figure", "value", "unit", "bar", "met", "note"):
        shown.add_column(head, justify="right" if head == "value" else "left")
    for figure in figures:
        value = "-" if figure.value is None else readable(figure.value)
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.met]
        shown.add_row(figure.name, value, figure.unit, figure.bar, met, figure.note)
    return shown


def readable(value: float) -> str:
    """A number with three or more significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(document: dict[str, Any], to: Path) -> None:
    """Write the summary as JSON."""
    write_atomically(to, (json.dumps(document, indent=1) + "\n").encode())


def draw(figures: Sequence[Figure], to: Path) -> None:
    """Write the picture."""
    write_atomically(to, picture(figures).encode())
