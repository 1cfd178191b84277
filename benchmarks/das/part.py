"""Runs one part of the benchmark in a process of its own: `python -m benchmarks.das.part --help`.

A part is a module of this package with `run(rows: int, work_folder: Path) -> list[Figure]`. It says
what it is doing by `say`, and leaves no process behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.das.figures import Figure

_STARTED_S = time.monotonic()


def say(words: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(f"{time.monotonic() - _STARTED_S:6.0f} s  {words}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Run a part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", help="module of benchmarks.das")
    parser.add_argument("--rows", type=int, required=True, help="impressions")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args(argv)
    run = import_module(f"benchmarks.das.{arguments.part}").run
    figures: list[Figure] = run(arguments.rows, arguments.work)
    arguments.out.write_text(json.dumps([figure.as_dict() for figure in figures], indent=1))


if __name__ == "__main__":
    main()
