"""Memory of what is pending, beside its Arrow size, when all of it is held in memory.

Twenty million pending rows in two gigabytes: `python -m benchmarks.das.memory --rows 20000000
--limit-gb 2`, which takes too long to stand here.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.das.figures import Figure, at_most
from benchmarks.das.memory import measure
from benchmarks.das.part import say

MOST_OF_ARROW = 1.3


def run(rows: int, work_folder: Path) -> list[Figure]:
    """One figure."""
    say(f"{rows:,} pending impressions and their predictions, held in memory")
    found = measure(rows, held=True)
    return [
        at_most(
            "memory of what is pending over its Arrow size",
            float(found["anonymous_ratio"]),
            "x",
            MOST_OF_ARROW,
            f"{rows:,} impressions and predictions, {found['arrow_bytes'] / 2**20:,.0f} MiB",
        )
    ]
