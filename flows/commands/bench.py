"""The command line of the benchmarks: `exfm bench --help`. They stand in the checkout only."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flows.run.setup import FAILED, console, fail

app = typer.Typer(no_args_is_help=True, help="Measure, beside other engines.")


@app.callback()
def group() -> None:
    """Measure, beside other engines."""


@app.command()
def das(
    rows: Annotated[
        int | None, typer.Option(min=1000, help="Impressions; default: 1,000,000.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="PART,...", help="Parts to run; default: all.")] = "",
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all figures as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rates as an SVG.")
    ] = None,
) -> None:
    """Measure the join of labels, beside Flink, Pathway and plain Bytewax, some 20 minutes.

    The peers are installed below .cache/peers the first time. Exit code 1 if a bar is not reached.
    Example: `exfm bench das --only files --rows 50000`
    """
    if find_spec("benchmarks") is None or find_spec("benchmarks.das") is None:
        fail("benchmarks/ is not part of the installed package: run `exfm bench` of a checkout")
    from benchmarks.das import bench

    parts = [part for part in only.split(",") if part]
    if unknown := set(parts) - bench.PARTS.keys():
        fail(f"--only {','.join(sorted(unknown))} must be among {', '.join(bench.PARTS)}")
    started_s, rows = time.monotonic(), rows or bench.ROWS
    screen = console()
    figures = bench.bench(rows, parts, bench.WORK, screen)
    screen.print(bench.table(figures))
    document = bench.summary(figures, rows, time.monotonic() - started_s)
    if summary is not None:
        bench.write(document, summary)
    if picture is not None:
        bench.draw(figures, picture)
    if missed := [figure.name for figure in figures if figure.met is False]:
        fail(f"not reached: {'; '.join(missed)}", FAILED)
