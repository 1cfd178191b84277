"""The other engines' jobs: Flink SQL, Pathway, stock Bytewax."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.das.engine import Outcome, run_engine
from benchmarks.das.environments import flink_kafka_jar, java_environ, python_of
from benchmarks.das.job import WINDOW_S

CHECKOUT = Path(__file__).resolve().parents[2]
LIMIT_S = 150.0
"""Of one run."""


def flink(
    events: Path, *, cores: Sequence[int] = (), spec: Mapping[str, Any] | None = None
) -> Outcome:
    """Two interval joins in Flink SQL, one task slot, state on the heap, no checkpoints.

    Args:
        events: folder of the JSON lines.
        cores: that it may use; empty: all.
        spec: further settings of benchmarks/das/flink_job.py.

    Raises:
        EngineFailed: it could not be installed, failed, or was too slow.
    """
    return job("flink", events, cores=cores, spec=spec or {}, environ=java_environ())


def flink_kafka(
    bootstrap: str,
    topics: Mapping[str, str],
    *,
    window_s: float = WINDOW_S,
    limit_s: float = LIMIT_S,
    options: Mapping[str, str] | None = None,
) -> Outcome:
    """The same joins over topics of a broker, from their beginning to where they end now.

    Args:
        bootstrap: address of the broker.
        topics: names of the topics of JSON `impressions`, `predictions` and `labels`; messages
            without a value are skipped.
        window_s: of the label, whole minutes.
        limit_s: Flink is killed behind it.
        options: further settings of Flink, e.g. `execution.checkpointing.interval`.

    Raises:
        EngineFailed: it could not be installed, failed, or was too slow.
    """
    spec = {
        "bootstrap": bootstrap,
        "topics": dict(topics),
        "window_s": window_s,
        "options": {"pipeline.jars": flink_kafka_jar().as_uri(), **(options or {})},
    }
    return job("flink", Path(), spec=spec, environ=java_environ(), limit_s=limit_s)


def pathway(events: Path, *, cores: Sequence[int] = ()) -> Outcome:
    """Two interval joins in Pathway, static mode, one thread.

    Raises:
        EngineFailed: it could not be installed, failed, or was too slow.
    """
    environ = {"PATHWAY_THREADS": "1", "PATHWAY_PROCESSES": "1"}
    return job("pathway", events, cores=cores, environ=environ)


def bytewax(events: Path, rows: int, *, cores: Sequence[int] = ()) -> Outcome:
    """`join_window` of stock Bytewax over the first impressions.

    Raises:
        EngineFailed: it could not be installed, failed, or was too slow.
    """
    return job("bytewax", events, cores=cores, spec={"rows": rows})


def job(
    peer: str,
    events: Path,
    *,
    cores: Sequence[int] = (),
    spec: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> Outcome:
    """Run benchmarks/das/PEER_job.py by the peer's interpreter."""
    python = python_of(peer)
    with tempfile.TemporaryDirectory(prefix=f"{peer}-") as scratch:
        command: list[str | Path] = [
            python,
            "-m",
            f"benchmarks.das.{peer}_job",
            f"--events={events}",
        ]
        command += [f"--scratch={scratch}", f"--spec={json.dumps(spec or {})}"]
        return run_engine(command, limit_s=limit_s, cores=cores, environ=environ, folder=CHECKOUT)
