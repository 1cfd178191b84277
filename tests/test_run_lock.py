"""A lock that one process holds at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.run_lock import InUse, held

HOLD = """
import sys
from pathlib import Path
from flows.run_lock import held
with held(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[1]
FULL = Path("/dev/full")
"""What is written there finds no room."""


def test_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with (
        held(path, "run x"),
        pytest.raises(InUse, match=f"^run x is in use by process {os.getpid()}; stop"),
        held(path, "run x"),
    ):
        pass
    with held(path, "run x"):
        assert path.read_text() == str(os.getpid())


def test_killed_holder_releases(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match=str(holder.pid)), held(path, "it"):
            pass
        holder.kill()
        holder.wait()
    with held(path, "it"):
        pass


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_lock_without_room_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.symlink_to(FULL)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), held(path, "it"):
        pass
