"""What dies is restarted, what is stopped is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.run.supervisor import Backoff, Group, ProcessFailed, Supervisor

ROOT = Path(__file__).resolve().parents[1]
SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('deaf', flush=True); time.sleep(600)"
)
OWNER = """
import signal, sys, time
from pathlib import Path
from flows.run.supervisor import Group, Supervisor, interruptible
code = "import time; time.sleep(600)"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
try:
    with interruptible(), Supervisor(Path(sys.argv[1]), {}) as supervisor:
        for name in ("one", "two"):
            supervisor.add(Group(name=name, commands=lambda: [[sys.executable, "-c", code]]))
        print(*supervisor.pids("one"), *supervisor.pids("two"), flush=True)
        while True:
            supervisor.poll()
            time.sleep(0.02)
except KeyboardInterrupt:
    sys.exit(130)
"""


def group(name: str, *codes: str, restart: bool = True) -> Group:
    commands = [[sys.executable, "-c", code] for code in codes]
    return Group(name=name, commands=lambda: commands, restart=restart)


def until(supervisor: Supervisor, condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, supervisor.states()
        supervisor.poll()
        time.sleep(0.02)


def test_finished_process_is_not_restarted(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", "print('done')"))
        until(supervisor, lambda: supervisor.finished("job"))
        supervisor.poll()
        assert supervisor.states() == {"job": ("finished", 0)}
    assert (tmp_path / "job.log").read_text() == "done\n"


def test_process_that_dies_is_restarted_and_counted(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"from pathlib import Path; p = Path({str(mark)!r}); there = p.exists(); p.touch(); "
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", code + "exit(0 if there else 3)"))
        until(supervisor, lambda: supervisor.finished("job"))
        assert supervisor.states()["job"] == ("finished", 1)


def test_killed_process_is_restarted_as_another(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", SLEEP))
        (before,) = supervisor.pids("job")
        supervisor.kill("job")
        until(supervisor, lambda: supervisor.pids("job") not in ([], [before]))
        assert supervisor.states()["job"] == ("running", 1)
        assert not psutil.pid_exists(before)


def test_group_restarts_as_a_whole(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("das", SLEEP, SLEEP))
        before = supervisor.pids("das")
        os.kill(before[1], signal.SIGKILL)
        until(supervisor, lambda: len(set(supervisor.pids("das")) - set(before)) == 2)
        assert not psutil.pid_exists(before[0])
        assert supervisor.states()["das"] == ("running", 1)


def test_crash_loop_ends_the_run_with_the_end_of_the_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ, backoff=Backoff(first_s=0.01, deaths=3)) as supervisor:
        supervisor.add(group("job", "raise SystemExit('disk is full')"))
        with pytest.raises(ProcessFailed, match=r"(?s)job died 3 times within 30 s.*disk is full"):
            until(supervisor, lambda: False)


def test_death_of_a_group_without_restart_ends_the_run(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", "exit(4)", restart=False))
        with pytest.raises(ProcessFailed, match=r"job died exit code \[4\]"):
            until(supervisor, lambda: False)


def test_wrong_configuration_is_not_tried_again(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", "exit(2)"))
        with pytest.raises(ProcessFailed, match=r"job died exit code \[2\]"):
            until(supervisor, lambda: False)


def test_stopped_group_stays_stopped_until_it_is_restarted(tmp_path: Path) -> None:
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", SLEEP))
        supervisor.stop("job")
        supervisor.poll()
        assert supervisor.states()["job"] == ("stopped", 0)
        supervisor.restart("job")
        assert len(supervisor.pids("job")) == 1


def test_close_kills_what_ignores_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.run.supervisor.STOP_S", 0.3)
    with Supervisor(tmp_path, os.environ) as supervisor:
        supervisor.add(group("job", STUBBORN))
        until(supervisor, lambda: "deaf" in (tmp_path / "job.log").read_text())
        (pid,) = supervisor.pids("job")
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_owner_that_gets_a_signal_leaves_no_process(tmp_path: Path, number: int) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("needs Linux's PR_SET_PDEATHSIG")
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        children = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        os.kill(owner.pid, number)
        assert owner.wait(30) == (-number if number == signal.SIGKILL else 130)
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
