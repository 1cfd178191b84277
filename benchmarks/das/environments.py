"""The peers' environments: a venv for each below `.cache/peers`, made at the first use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.das.engine import EngineFailed
from flows.kafka.jars import JarError, class_path
from flows.kafka.java import java_program

PEERS = Path(__file__).resolve().parents[2] / ".cache" / "peers"
PACKAGES = {
    "flink": "apache-flink==2.3.0",
    "pathway": "pathway==0.33.0",
    "bytewax": "bytewax==0.21.1",
    "decoders": (
        "arro3-core==0.9.1 arro3-io==0.9.1 duckdb==2.0.0 msgspec==0.22.0 numpy==2.4.6 "
        "orjson==3.13.0 polars==2.1.0 pyarrow==26.0.1"
    ),
}
LIMIT_S = 300.0
"""Of an installation."""


def python_of(peer: str) -> Path:
    """Interpreter of a peer's environment.

    Raises:
        EngineFailed: it could not be installed.
    """
    folder, wanted = PEERS / peer, PACKAGES[peer]
    python, done = folder / "bin" / "python", folder / "installed.txt"
    if not (done.exists() and done.read_text() == wanted):
        uv = Path(sys.executable).with_name("uv")
        install(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder)
        install(uv, "pip", "install", "--quiet", "--python", python, *wanted.split())
        done.write_text(wanted)
    return python


def install(*command: str | Path) -> None:
    """Run a step of an installation."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailed(f"not installed: {error}") from error
    if done.returncode != 0:
        raise EngineFailed(f"not installed: {done.stderr.strip()[-300:]}")


def flink_kafka_jar() -> Path:
    """Flink's connector for Kafka, of the checksum in flink.lock.toml beside this module.

    Raises:
        EngineFailed: it could not be fetched.
    """
    try:
        (jar,) = class_path(Path(__file__).with_name("flink.lock.toml"))
    except JarError as error:
        raise EngineFailed(str(error)) from error
    return jar


def java_environ() -> dict[str, str]:
    """Environment in which Flink finds Java."""
    java = java_program()
    return {
        "JAVA_HOME": str(java.parents[1]),
        "PATH": f"{java.parent}{os.pathsep}{os.environ['PATH']}",
    }
