"""What a user types, and what comes back."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from flows.cli import app
from flows.join.recovery import StateFull
from flows.kafka.client import BrokerUnreachable
from flows.run.errors import SPEAKING, exit_code, told
from flows.run.process import announced
from flows.run.setup import folder_of, parsed_addresses, parsed_speed
from flows.run_folder import RunFolder
from flows.settings import SettingsError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    *("demo", "up", "run", "replay", "simulate", "load", "status", "backfill"),
    *("snapshots ls", "snapshots rollback"),
    *("bench das", "das inspect", "dlq ls", "dlq show", "dlq replay"),
]


def exfm(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def config(tmp_path: Path, before: str = "", after: str = "") -> Path:
    text = (ROOT / "configs" / "market.toml").read_text()
    assert before in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(before, after, 1) if before else text)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = exfm(*command.split(), "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout
    assert f"exfm {command}" in done.stdout


def test_help_lists_every_command() -> None:
    done = exfm("--help")
    names = {group.name for group in app.registered_groups}
    names |= {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    assert {command.split()[0] for command in COMMANDS} == names
    for command in COMMANDS:
        assert command.split()[0] in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['exfm', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stderr.split())
    heavy = {"torch", "bytewax", "plotly", "pyarrow", "polars", "numpy", "confluent_kafka"}
    assert "flows.cli" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("window_s = 8", "window_s = 0", ["tasks.0.window_s = 0", "must be from 0.001"]),
        ("[das]", "[das]\nshard = 3", ["das.shard = 3", "unknown key"]),
        ('domains = ["feed"]', 'domains = ["fed"]', ["students.feed_late.domains", "'fed'"]),
        ("[das]", "[das", ["not TOML"]),
    ],
)
def test_bad_configuration_names_file_key_value_and_rule(
    tmp_path: Path, before: str, after: str, words: list[str]
) -> None:
    path = config(tmp_path, before, after)
    done = exfm("demo", f"--config={path}", "--run=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for word in [str(path), *words]:
        assert word in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--run=nowhere"], ["runs/nowhere/config.toml", "cannot be read"]),
        (["status"], ["no run below runs/"]),
        (["status", "--run=nowhere"], ["runs/nowhere", "does not exist"]),
        (["replay", "kuairand", ".", "--speed=fast"], ["--speed", "'fast'", "positive"]),
        (["run", "das", "--process-id=1", "--config=bad.toml"], ["--process-id 1", "below the 0"]),
        (["run", "das", "--config=bad.toml"], ["kafka.bootstrap", "exfm up"]),
        (["run", "das", "--config=bad.toml", "-a", "foo"], ["--address", "HOST:PORT", "'foo'"]),
        (
            ["run", "das", "--config=bad.toml", "-a", "localhost:99999"],
            ["a port from 1 to 65535, got 'localhost:99999'"],
        ),
        (
            ["run", "das", "--config=bad.toml", "-a", "localhost:7001", "-a", "localhost:7001"],
            ["--address localhost:7001 must stand there once"],
        ),
    ],
)
def test_wrong_use_is_one_clear_line(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    config(tmp_path)
    done = exfm(*arguments, cwd=tmp_path, EXFM_BOOTSTRAP="")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("exfm: ")
    assert all(word in last for word in words), last


def test_used_folder_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "summary.json").write_text("{}")
    done = exfm("demo", "--run=old", f"--config={config(tmp_path)}", cwd=tmp_path)
    assert (done.returncode, "runs/old holds an earlier run" in done.stderr) == (2, True)


def test_run_is_a_name_or_a_path() -> None:
    assert folder_of("a").root == Path("runs/a")
    assert folder_of("/tmp/a").root == Path("/tmp/a")
    assert folder_of("./a").root == Path("a")


def test_speed_is_max_or_positive() -> None:
    assert parsed_speed("max") is None
    assert parsed_speed("2.5") == 2.5
    for text in ("0", "-1", "nan", "inf", ""):
        with pytest.raises(SystemExit):
            parsed_speed(text)


def test_address_that_is_not_ours_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "nowhere.invalid", "192.0.2.1"):
            with pytest.raises(SystemExit) as ended:
                parsed_addresses([f"{host}:{port}", "10.0.0.2:7001"], 0)
            assert ended.value.code == 1
            said = capsys.readouterr().err
            assert said.startswith(f"exfm: --address {host}:{port}: this process cannot listen")
    free = f"127.0.0.1:{port}"
    assert parsed_addresses([free, "10.0.0.2:7001"], 0) == (free, "10.0.0.2:7001")
    assert parsed_addresses([], 0) == ()


def test_only_errors_that_speak_for_themselves_have_an_exit_code() -> None:
    assert exit_code(SettingsError("x")) == 2
    assert exit_code(BrokerUnreachable("host:1", 1.0, "gone")) == 1
    assert exit_code(ZeroDivisionError()) is None


def test_full_disk_is_one_line_that_names_the_file() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/it")
    line = "runs/a/it cannot be written: No space left on device; make room and start again, "
    around = RuntimeError("around it")
    around.__cause__ = full
    assert told(around) == (line + "nothing is lost", 1)
    assert told(OSError(errno.ENOSPC, "No space left on device")) is None
    assert told(OSError(errno.ENOENT, "No such file or directory", "it")) is None


def test_lost_metrics_do_not_hide_why_a_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, *_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def process() -> None:
        with announced(RunFolder(tmp_path), "job"):
            monkeypatch.setattr("flows.run.process.write_atomically", full)
            raise StateFull(Path("segment"), "why")

    with pytest.raises(StateFull, match=r"^segment cannot be written: why; make room"):
        process()
    assert f"the last metrics are lost: {tmp_path}" in caplog.text


def test_interrupted_server_process_ends_cleanly(tmp_path: Path) -> None:
    path = config(tmp_path)
    command = [sys.executable, "-m", "flows.cli", "run", "serve", f"--config={path}", "--run=./r"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE) as process:
        announced = tmp_path / "r" / "processes" / "serve.json"
        deadline_s = time.monotonic() + 60
        while not (announced.exists() and '"http":' in announced.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert list(announced.parent.glob("serve.*.prom"))


@pytest.mark.parametrize(("module", "name"), SPEAKING)
def test_speaking_error_is_an_error(module: str, name: str) -> None:
    assert issubclass(getattr(import_module(module), name), Exception)
