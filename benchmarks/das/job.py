"""What every engine's job shares: its clock, its files, its outcome. The standard library only.

A job runs by the interpreter of its engine's own environment: it may import this module and its
engine, nothing else of the project.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WINDOW_S = 600
INTS = ("user_id", "ad_id", "advertiser", "category")
TEXTS = ("device", "country", "placement")
NUMBERS = ("ad_impressions", "ad_clicks", "user_impressions", "user_clicks")


@dataclass(kw_only=True, slots=True)
class Clock:
    """Wall clock and CPU seconds of this process and all below it."""

    seconds: float = 0.0
    cpu_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time spent inside."""
        wall_s, cpu_s = time.monotonic(), tree_cpu_s()
        yield
        self.seconds += time.monotonic() - wall_s
        self.cpu_s += tree_cpu_s() - cpu_s


def tree_cpu_s() -> float:
    """CPU seconds so far of this process and all below it that still run."""
    parents, ticks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    total = 0
    for pid in ticks:
        above = pid
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        total += ticks[pid] if above == os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")


def arguments(description: str | None) -> argparse.Namespace:
    """The folder of the events, the scratch folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--events", type=Path, required=True, help="folder of the JSON lines")
    parser.add_argument("--scratch", type=Path, required=True, help="empty folder to write to")
    parser.add_argument("--spec", type=json.loads, default={}, help="further settings as JSON")
    return parser.parse_args()


def report(clock: Clock, examples: int, positives: int, predicted: int) -> None:
    """Print the outcome as the last line."""
    outcome = {
        "seconds": clock.seconds,
        "cpu_s": clock.cpu_s,
        "examples": examples,
        "positives": positives,
        "predicted": predicted,
    }
    sys.stdout.write("\n" + json.dumps(outcome) + "\n")


def counts(paths: Iterable[Path]) -> tuple[int, int, int]:
    """Examples, positives and examples with a prediction in files of JSON lines."""
    examples = positives = predicted = 0
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                examples += 1
                positives += row["label"] == 1
                predicted += row.get("fm_logit_click") is not None
    return examples, positives, predicted
