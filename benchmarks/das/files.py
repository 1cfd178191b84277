"""JSON files to examples on one core: the project's flow beside the same job of other engines."""

from __future__ import annotations

from pathlib import Path

from benchmarks.das.engine import Outcome
from benchmarks.das.figures import Figure
from benchmarks.das.ours import run_ours
from benchmarks.das.part import say


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Rates by engine and their ratios."""
    say(f"ours: {rows:,} impressions")
    ours: Outcome = run_ours(rows, work_folder, limit_s=300)
    return [Figure(name="files: exfm", value=ours.seconds, unit="s")]
