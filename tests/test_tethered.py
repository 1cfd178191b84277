"""Programs that end with their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows.tethered import TetheredProcess

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
OWNER = """
import sys, threading
from pathlib import Path
from flows.tethered import TetheredProcess
child = TetheredProcess(sys.argv[2:], log=Path(sys.argv[1]))
print(child.pid, flush=True)
threading.Event().wait()
"""


def test_exit_code_tells_how_the_program_ended(tmp_path: Path) -> None:
    child = TetheredProcess([sys.executable, "-c", "exit(7)"], log=tmp_path / "log")
    assert child.wait(30)
    assert child.exit_code == 7
    killed = TetheredProcess(SLEEP, log=tmp_path / "log")
    assert killed.exit_code is None
    killed.send(signal.SIGKILL)
    assert killed.wait(30)
    assert killed.exit_code == -signal.SIGKILL


def test_program_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("first", "second"):
        child = TetheredProcess([sys.executable, "-c", f"print('{word}')"], log=log)
        assert child.wait(30)
    assert log.read_text() == "first\nsecond\n"


def test_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/program"):
        TetheredProcess(["/no/such/program"], log=tmp_path / "log")


def test_signal_after_the_end_does_nothing(tmp_path: Path) -> None:
    child = TetheredProcess([sys.executable, "-c", ""], log=tmp_path / "log")
    assert child.wait(30)
    child.send(signal.SIGTERM)
    assert child.exit_code == 0


def test_program_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    children: list[TetheredProcess] = []
    thread = threading.Thread(
        target=lambda: children.append(TetheredProcess(SLEEP, log=tmp_path / "log"))
    )
    thread.start()
    thread.join()
    assert not children[0].wait(0.5)
    children[0].send(signal.SIGKILL)
    assert children[0].wait(30)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's PR_SET_PDEATHSIG")
def test_program_dies_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "log"), *SLEEP]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        os.kill(owner.pid, signal.SIGKILL)
    child.wait(30)
