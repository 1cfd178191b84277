"""The join as an operator runs it: `exfm run das`, in one process or several."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from flows.config_file import dump
from flows.kafka.broker import HOST, free_port
from flows.run.launch import exfm
from flows.run_folder import RunFolder
from flows.settings import Settings
from flows.tethered import TetheredProcess
from models.durable import write_atomically

STOP_S = 120.0
LOG_LINES = 15


class JoinProcesses:
    """All processes of the join of one run; a context manager that leaves none behind."""

    def __init__(self, settings: Settings, folder: RunFolder, num: int) -> None:
        """Start them."""
        write_atomically(folder.config, dump(settings).encode())
        folder.logs.mkdir(parents=True, exist_ok=True)
        command = ["run", "das"]
        if num > 1:
            command += [f"--address={HOST}:{free_port()}" for _ in range(num)]
        self._logs = [folder.logs / f"das-{i}.log" for i in range(num)]
        self._processes = [
            TetheredProcess(
                exfm(*command, *([f"--process-id={i}"] if num > 1 else []), folder=folder),
                log=self._logs[i],
            )
            for i in range(num)
        ]

    def __enter__(self) -> JoinProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.send(signal.SIGKILL)
            process.wait()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [process.pid for process in self._processes]

    @property
    def codes(self) -> list[int | None]:
        """Exit codes; None of those that run."""
        return [process.exit_code for process in self._processes]

    def check(self) -> None:
        """Raise RuntimeError if one has failed by itself."""
        for code, log in zip(self.codes, self._logs, strict=True):
            if code:
                raise RuntimeError(f"the join ended with {code} by itself:\n{tail(log)}")

    def sleep(self, seconds: float) -> None:
        """Let them run for a while.

        Raises:
            RuntimeError: one has failed by itself.
        """
        time.sleep(seconds)
        self.check()

    def kill(self, rng: random.Random) -> None:
        """Do kill -9 on all, in random order and not quite at once."""
        for process in rng.sample(self._processes, len(self._processes)):
            process.send(signal.SIGKILL)
            if process is not self._processes[-1]:
                time.sleep(rng.uniform(0, 0.3))

    def stop(self) -> None:
        """Stop all cleanly.

        Raises:
            RuntimeError: one failed, or did not stop in time.
        """
        for process in self._processes:
            process.send(signal.SIGTERM)
        self.wait_for_the_end(STOP_S)

    def wait_for_the_end(self, timeout_s: float) -> None:
        """Wait until all have ended by themselves.

        Raises:
            RuntimeError: one failed, or did not end in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while None in self.codes:
            self.check()
            if time.monotonic() > deadline_s:
                tails = "\n".join(map(tail, self._logs))
                raise RuntimeError(f"the join did not end within {timeout_s:.0f} s:\n{tails}")
            time.sleep(0.05)
        self.check()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
