"""A wall clock that is set back ends the process, so that nobody waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys, threading, time
from flows.clock_watch import ending_if_set_back
real, back_s = time.time, float(sys.argv[1])
with ending_if_set_back():
    time.time = lambda: real() - back_s
    threading.Event().wait(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("back_s", "wait_s", "code"), [(3600, 60, 1), (-3600, 2, 0), (1, 2, 0)])
def test_clock_that_is_set_back_ends_the_process(back_s: float, wait_s: float, code: int) -> None:
    command = [sys.executable, "-c", CODE, str(back_s), str(wait_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("set back by 3600 s" in done.stderr) == (code == 1)
