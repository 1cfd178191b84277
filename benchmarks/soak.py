"""Shows the guarantees under kills, silence, swaps and bad data: `make soak KUAIRAND=DIR`.

    python -m benchmarks.soak DIR [--run runs/soak] [--seeds 3] [--only kills]

Each part runs the real processes over a real Kafka. The table at the end has a line for each claim;
exit code 0 only if all hold.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.evidence import Evidence, gather
from benchmarks.live_scenarios import silent_teacher_and_swaps
from flows.config_file import dump, seeded
from flows.report.checks import Check, checks_table
from flows.run.demo import EVENTS, default_config
from flows.run.launch import Launched, exfm, launched
from flows.run.process import FLOWS, configure_logging
from flows.run.supervisor import BROKER, Group
from flows.run_folder import RunFolder
from flows.settings import Settings, load
from flows.wording import number, percent
from models.durable import write_atomically

logger = logging.getLogger(__name__)

IMPRESSIONS = 222_444
GAINS = {("tab_1", "click"): 0.0020, ("tab_4", "click"): 0.0040, ("tab_1", "long_view"): 0.0025}
"""Least NE gain over the shadow, mean of the seeds."""
MOST_SHUFFLED = 0.001
MALFORMED = 0.01
MIN_REASONS = 5
"""Ten kinds of broken events, some of which break the same rule."""

During = Callable[[Launched], None]


def replayed(
    settings: Settings, folder: RunFolder, data: Path, das: int = 1, during: During | None = None
) -> Evidence:
    """One whole replay at full speed, and what it left.

    Args:
        settings: of the run.
        folder: new.
        data: KuaiRand-Pure.
        das: processes that share the join.
        during: called once the events begin to be written; keeps polling the supervisor.
    """
    write_atomically(folder.config, dump(settings).encode())
    write = exfm("replay", "kuairand", str(data), "--write-only", folder=folder)
    with launched(settings, folder, das_processes=das) as run:
        run.supervisor.add(Group(name=EVENTS, commands=lambda: [write], restart=False))
        if during is not None:
            during(run)
        run.wait(lambda: run.drained and run.supervisor.finished(EVENTS))
        return gather(run)


def kill_everything(run: Launched) -> None:
    """Do kill -9 on each flow and the broker in turn, spread over the replay."""
    step = IMPRESSIONS / (len(FLOWS) + 2)
    for position, victim in enumerate((*FLOWS, BROKER)):
        goal = step * (position + 1)

        def reached(goal: float = goal) -> bool:
            examples = run.scraper.newest.total("exfm_das_windows_closed_total")
            return run.drained or examples >= goal

        run.wait(reached)
        logger.warning("kill -9 %s", victim)
        run.supervisor.kill(victim)
        run.supervisor.poll()


def accounted(evidence: Evidence) -> Iterator[Check]:
    """Each impression led to one example a task, or to a dead letter."""
    dead = sum(n for (topic, _), n in evidence.dead_letters.items() if topic == "impressions")
    for task, unique in evidence.unique_ids.items():
        repeated = evidence.repeated_ids[task]
        yield Check(
            name=f"impressions accounted for, {task}",
            value=f"{unique:,} examples + {dead:,} dead letters, {repeated} repeated ids",
            rule=f"{IMPRESSIONS:,} in all, 0 repeated",
            passed=unique + dead == IMPRESSIONS and repeated == 0,
        )


def gains(runs: list[Evidence]) -> Iterator[Check]:
    """The teacher helps on real events."""
    for (model, task), least in GAINS.items():
        found = gains_of(runs, model, task)
        yield Check(
            name=f"NE gain of {model}, {task}, mean of {len(found)} seeds",
            value=f"{percent(mean(found), signed=True)} ({', '.join(map(shown, found))})",
            rule=f">= {percent(least, signed=True)}",
            passed=mean(found) >= least,
        )


def no_gain(runs: list[Evidence]) -> Iterator[Check]:
    """A shuffled teacher teaches nothing."""
    for model, task in GAINS:
        found = gains_of(runs, model, task)
        yield Check(
            name=f"NE gain of {model}, {task}, from a shuffled teacher",
            value=f"{shown(mean(found))} ({', '.join(map(shown, found))})",
            rule=f"within {percent(MOST_SHUFFLED)}",
            passed=abs(mean(found)) < MOST_SHUFFLED,
        )


def gains_of(runs: list[Evidence], model: str, task: str) -> list[float]:
    """NE gain over the shadow, by run."""
    return [run.summary["models"][model][task]["gain"] or 0.0 for run in runs]


def equal(name: str, found: Evidence, expected: Evidence) -> list[Check]:
    """Same examples, same weights."""
    differing = [m for m, digest in expected.weights.items() if found.weights[m] != digest]
    return [
        Check(
            name=f"examples {name}",
            value=f"{found.num_examples:,}, digest {found.examples[:12]}",
            rule=f"digest {expected.examples[:12]}",
            passed=found.examples == expected.examples,
        ),
        Check(
            name=f"weights {name}",
            value=f"differ: {', '.join(differing)}" if differing else "equal bit for bit",
            rule=f"equal bit for bit, {len(expected.weights)} models",
            passed=not differing,
        ),
    ]


def killed(evidence: Evidence) -> Check:
    """Everything that was killed came back."""
    counts = {name: evidence.restarts[name] for name in (*FLOWS, BROKER)}
    return Check(
        name="kill -9 of each flow and the broker",
        value=", ".join(f"{name} {count}" for name, count in counts.items()),
        rule="each restarted at least once",
        passed=min(counts.values()) >= 1,
    )


def malformed(evidence: Evidence, folder: RunFolder) -> list[Check]:
    """Bad events are counted by reason and kept byte for byte."""
    written = json.loads((folder.root / "written.json").read_bytes())["malformed"]
    expected = Counter((topic, bytes.fromhex(value)) for topic, value in written)
    counted = sum(evidence.summary["stream"]["rejected"].values())
    found = sum((expected & evidence.dead_letters).values())
    num_written = sum(expected.values())
    num_dead = sum(evidence.dead_letters.values())
    return [
        Check(
            name="malformed events in dead_letters, byte for byte",
            value=f"{found:,} of {num_written:,}",
            rule="all",
            passed=0 < found == num_written,
        ),
        Check(
            name="rejected events counted by reason",
            value=f"{number(counted, 0)} counted, {len(evidence.reasons)} reasons",
            rule=f"{num_dead:,} dead letters, >= {MIN_REASONS} reasons",
            passed=counted == num_dead and len(evidence.reasons) >= MIN_REASONS,
        ),
    ]


def parts(data: Path, root: Path, seeds: int) -> Iterator[tuple[str, Callable[[], list[Check]]]]:
    """Name and body of each part; the first replay is made once, by whoever needs it."""
    settings = load(default_config("kuairand"))
    first: list[Evidence] = []

    def folder(name: str) -> RunFolder:
        return RunFolder(root / name)

    def base() -> Evidence:
        if not first:
            first.append(replayed(settings, folder("seed-0"), data))
        return first[0]

    def by_seed(settings: Settings, name: str, first: int) -> list[Evidence]:
        return [
            replayed(seeded(settings, seed), folder(f"{name}-{seed}"), data)
            for seed in range(first, seeds)
        ]

    def gain() -> list[Check]:
        runs = [base(), *by_seed(settings, "seed", 1)]
        teacher = settings.teacher.model_copy(update={"shuffle_within_domain": True})
        control = settings.model_copy(update={"teacher": teacher})
        shuffled = by_seed(control, "shuffled", 0)
        return [*accounted(base()), *gains(runs), *no_gain(shuffled)]

    def scaled() -> list[Check]:
        two = replayed(settings, folder("two-das"), data, das=2)
        return equal("of two DAS processes", two, base())

    def kills() -> list[Check]:
        found = replayed(settings, folder("kills"), data, during=kill_everything)
        return [killed(found), *equal("under kill -9", found, base())]

    def bad_data() -> list[Check]:
        noise = settings.noise.model_copy(update={"malformed": MALFORMED})
        noisy = settings.model_copy(update={"noise": noise})
        found = replayed(noisy, folder("malformed"), data)
        checks = malformed(found, folder("malformed"))
        return [*checks, *equal("beside malformed events", found, base())]

    yield "gain", gain
    yield "scale", scaled
    yield "kills", kills
    yield "live", lambda: silent_teacher_and_swaps(folder("live"))
    yield "malformed", bad_data


def shown(gain: float) -> str:
    """A gain for people."""
    return percent(gain, signed=True)


def main(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="KuaiRand-Pure as published.")],
    run: Annotated[Path | None, typer.Option(help="New folder for all runs.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Replays that a gain is the mean of.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Names of parts.")] = None,
) -> None:
    """Show the guarantees, one part after the other, and end with one table."""
    configure_logging(logging.WARNING)
    console = Console() if Console().is_terminal else Console(width=160)
    root = run or Path("runs") / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    checks: list[Check] = []
    for name, part in parts(data, root, seeds):
        if only and name not in only:
            continue
        started_s = time.monotonic()
        console.print(f"{name} ...")
        checks += part()
        console.print(f"{name}: {time.monotonic() - started_s:.0f} s")
    console.print(checks_table(checks))
    sys.exit(0 if checks and all(check.passed for check in checks) else 1)


if __name__ == "__main__":
    typer.run(main)
