"""Shows the guarantees of the join under kills, silence and damage: `make soak-das`.

    python -m benchmarks.das_soak [--kills 100] [--only kills] [--run runs/das-soak]

Real processes over a real Kafka. The table at the end has a line for each claim; exit code 0 only
if all hold.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.das_soak.brute_force import expected_dead_letters, expected_examples
from benchmarks.das_soak.cases import random_logs
from benchmarks.das_soak.fuzz import FORMATS, Crash, fuzz_in_child
from benchmarks.das_soak.kills import Gauntlet, Toll
from benchmarks.das_soak.live_kills import live_kills
from benchmarks.das_soak.log import random_log, soak_settings
from benchmarks.das_soak.outage import outages
from benchmarks.das_soak.runs import same_dead_letters, same_examples, variants
from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import ensure_topics
from flows.report.checks import Check, checks_table
from flows.run.process import configure_logging
from flows.run_folder import RunFolder
from flows.settings import Format

IMPRESSIONS_A_KILL = 600
PARTS = ("kills", "live", "outage", "fuzz", "cases")
LIVE_KILLS = 0.5
"""Kills of a live join, over those of one in a replay."""


def killed(root: Path, kills: int, seed: int, console: Console) -> Iterator[Check]:
    """Kill the join while the log grows, then read the same log without kills."""
    with EmbeddedKafka(root / "kafka") as broker:
        settings = soak_settings(broker.bootstrap, "kills")
        ensure_topics(settings)
        log = random_log(settings, kills * IMPRESSIONS_A_KILL, seed)
        started_s = time.monotonic()

        def say(toll: Toll) -> None:
            if toll.kills % 10 == 0:
                console.print(f"  {toll.kills} kills, {time.monotonic() - started_s:.0f} s")

        gauntlet = Gauntlet(settings, RunFolder(root / "killed"), log, broker, random.Random(seed))
        toll = gauntlet.run(kills, say)
        yield met(toll, kills, time.monotonic() - started_s)
        expected = expected_examples(log)
        yield same_examples(f"examples under {toll.kills} kill -9", settings, expected)
        yield same_dead_letters(settings, expected_dead_letters(log))
        yield from variants(settings, RunFolder(root / "variants"), expected)


def met(toll: Toll, kills: int, seconds: float) -> Check:
    """How the kills met the join."""
    instants = ", ".join(f"{n} {instant}" for instant, n in toll.instants.items())
    return Check(
        name=f"kill -9 of the join over a real Kafka, {seconds:.0f} s",
        value=f"{toll.kills}: {instants}; {toll.half_written} left a half-written segment, "
        f"{toll.idle} waited for an instant that did not come; "
        f"{toll.broker} kills of the broker (the join ended at {toll.deaths}), "
        f"{toll.stops} clean stops; "
        f"{toll.processes[1]} starts of one process, {toll.processes[2]} of two",
        rule=f"{kills}",
        passed=toll.kills >= kills,
    )


def fuzzed(form: Format, num_bytes: int, seed: int) -> Check:
    """Damaged messages for one decoder."""
    name, rule = f"damaged messages, {form}", f">= {num_bytes:,} bytes, no crash"
    try:
        found = fuzz_in_child(form, num_bytes, seed)
    except Crash as error:
        return Check(name=name, value=str(error), rule=rule, passed=False)
    return Check(
        name=name,
        value=f"{found.bytes:,} bytes, {found.messages:,} messages: {found.rows:,} rows; rejected "
        + ", ".join(f"{n:,} {reason}" for reason, n in sorted(found.reasons.items())),
        rule=f"{rule}; each a row or rejected byte for byte, whatever its batch",
        passed=found.bytes >= num_bytes and found.rows > 0,
    )


def fuzz_all(num_bytes: int, seed: int) -> list[Check]:
    """All decoders, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda form: fuzzed(form, num_bytes, seed), FORMATS))


def main(
    run: Annotated[Path | None, typer.Option(help="New folder for all runs.")] = None,
    kills: Annotated[int, typer.Option(min=1, help="Of the join.")] = 100,
    outage_s: Annotated[float, typer.Option(min=0, help="Length of each outage.")] = 30.0,
    fuzz_mb: Annotated[float, typer.Option(min=0, help="Damaged bytes for each decoder.")] = 5.0,
    cases: Annotated[int, typer.Option(min=1, help="Random logs for each property.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of log, kills and damage.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
) -> None:
    """Show what the join guarantees, one part after the other, and end with one table."""
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"--only {', '.join(unknown)} must be among {', '.join(PARTS)}")
    configure_logging(logging.ERROR)
    logging.getLogger("flows.kafka.producer").setLevel(logging.CRITICAL)  # brokers are killed here
    console = Console() if Console().is_terminal else Console(width=200)
    root = run or Path("runs") / f"das-soak-{time.strftime('%Y%m%d-%H%M%S')}"
    parts: dict[str, Callable[[], list[Check]]] = {
        "kills": lambda: list(killed(root / "kills", kills, seed, console)),
        "live": lambda: list(live_kills(root / "live", max(1, round(LIVE_KILLS * kills)), seed)),
        "outage": lambda: list(outages(root / "outage", outage_s, seed)),
        "fuzz": lambda: fuzz_all(round(fuzz_mb * 1e6), seed),
        "cases": lambda: [random_logs(cases)],
    }
    checks: list[Check] = []
    for name in only or PARTS:
        started_s = time.monotonic()
        console.print(f"{name} ...")
        checks += parts[name]()
        console.print(f"{name}: {time.monotonic() - started_s:.0f} s")
    console.print(checks_table(checks))
    sys.exit(0 if checks and all(check.passed for check in checks) else 1)


if __name__ == "__main__":
    typer.run(main)
