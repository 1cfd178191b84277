"""Runs one engine's job in a process of its own, on chosen cores, under a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LAST_WORDS = 2000
"""Characters of a failed job's output that are shown."""


class EngineFailed(RuntimeError):
    """An engine could not be installed, failed, or did not finish in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a job says of itself: the last line of its output, as JSON."""

    seconds: float
    """Wall clock of the job, without starting the interpreter or the virtual machine."""
    cpu_s: float
    """CPU seconds of all its processes in that time."""
    examples: int
    positives: int
    predicted: int
    """Examples with a prediction."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """What must be equal for all engines."""
        return self.examples, self.positives, self.predicted


def one_core() -> int:
    """The core that all jobs of one core run on: the last that this process may use."""
    return max(os.sched_getaffinity(0))


def run_engine(
    command: Sequence[str | Path],
    *,
    limit_s: float,
    cores: Sequence[int] = (),
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Run a job and read its last line.

    Args:
        command: program and arguments.
        limit_s: the job and all that it started are killed behind it.
        cores: it may run on; empty: all.
        environ: added to the environment.
        folder: to run in.

    Raises:
        EngineFailed: it failed or was too slow.
    """
    printed = run(command, limit_s=limit_s, cores=cores, environ=environ, folder=folder)
    try:
        found = json.loads(printed.strip().splitlines()[-1])
        return Outcome(**found)
    except (IndexError, TypeError, ValueError) as error:
        raise EngineFailed(f"{command[0]}: no outcome in its output: {error}") from error


def run(
    command: Sequence[str | Path],
    *,
    limit_s: float,
    cores: Sequence[int] = (),
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program under the same rules; what it prints.

    Raises:
        EngineFailed: it failed or was too slow.
    """
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    process = subprocess.Popen(
        [*pinned, *map(str, command)],
        cwd=folder,
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"{command[0]}: not finished within {limit_s:.0f} s") from error
    finally:
        kill_tree(process)
    if process.returncode != 0:
        words = (said or printed).strip()[-LAST_WORDS:]
        raise EngineFailed(f"{command[0]}: exit code {process.returncode}: {words}")
    return printed


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process, if it runs, and those below it; wait for it."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                child.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        process.kill()
    process.communicate()
