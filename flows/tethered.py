"""A child process that cannot outlive the process that started it, even if that is killed -9."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks Linux for SIGKILL at the owner's end (1 is PR_SET_PDEATHSIG), then becomes the program."""


class TetheredProcess:
    """A running program, in a session of its own so that Ctrl-C reaches its owner only.

    Linux watches the thread that started the child, so a thread starts it and waits for its end.
    Systems other than Linux have no such watch: there a killed owner leaves the child behind.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start the program.

        Args:
            command: absolute path of the program, then its arguments.
            log: file that its output is appended to.
            environ: its environment; None: this process's.

        Raises:
            OSError: the program cannot be started.
        """
        if not os.access(command[0], os.X_OK):
            raise FileNotFoundError(f"the program to start must be executable: {command[0]}")
        self._command = list(command)
        self._log = log
        self._environ = environ
        self._ended = threading.Event()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        threading.Thread(target=self._keep, name=f"keeper of {command[0]}", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def pid(self) -> int:
        """Id of the process, which the program keeps."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        assert self._process is not None
        return self._process.returncode if self._ended.is_set() else None

    def send(self, signal_number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if not self._ended.is_set():
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                self._ended.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False if the process still runs after `timeout_s`."""
        return self._ended.wait(timeout_s)

    def _keep(self) -> None:
        command = self._command
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", TETHER, str(os.getpid()), *command]
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environ,
                    start_new_session=True,
                )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()
