"""Whole runs, from the first event to the report: the market's demo, the replay of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.report.checks import Check, as_json, checks_table, demo_checks
from flows.report.report import write_report
from flows.report.summary import Figures, summarise
from flows.report.summary_tables import tables
from flows.run.launch import Launched, exfm, launched
from flows.run.live import LiveView
from flows.run.process import FLOWS, SERVE
from flows.run.supervisor import Group
from flows.run_folder import RunFolder, write_json
from flows.settings import Settings

EVENTS = "events"
LOAD = "load"
CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder of the packages: the repository, unless they were installed as a wheel."""


def demo(settings: Settings, folder: RunFolder, *, seconds: float, console: Console) -> list[Check]:
    """Run the market in real time, under load, and measure.

    Args:
        settings: of configs/market.toml, or like it.
        folder: new, with `config.toml` in it.
        seconds: length of the stream.
        console: where to show it.

    Returns:
        The bars and whether each was reached.
    """
    with launched(settings, folder) as run, LiveView(console, run, total_s=seconds + 30) as view:
        view.phase("starting the processes")
        run.wait(lambda: everyone_is_up(run), on_tick=view.tick)
        load = exfm("load", folder=folder)
        run.supervisor.add(Group(name=LOAD, commands=lambda: [load]))
        simulate = exfm("simulate", f"--seconds={seconds:g}", folder=folder)
        write_and_drain(run, view, simulate)
        run.supervisor.stop(LOAD)
        summary = summary_of(run)
    checks = demo_checks(settings, summary)
    summary["checks"] = as_json(checks)
    conclude(run, summary, console, checks)
    return checks


def replay_dataset(
    settings: Settings,
    folder: RunFolder,
    write: Sequence[str],
    *,
    das_processes: int,
    console: Console,
) -> Figures:
    """Run everything on a dataset that a child process writes, and measure.

    Args:
        settings: of the run.
        folder: new, with `config.toml` in it.
        write: command line of the child.
        das_processes: processes that share the join.
        console: where to show it.

    Returns:
        What `summary.json` holds.
    """
    with (
        launched(settings, folder, das_processes=das_processes) as run,
        LiveView(console, run) as view,
    ):
        write_and_drain(run, view, write)
        summary = summary_of(run)
    conclude(run, summary, console)
    return summary


def keep_up(settings: Settings, folder: RunFolder, *, das_processes: int, console: Console) -> None:
    """Keep all processes running until the log ends, or for ever."""
    with (
        launched(settings, folder, das_processes=das_processes) as run,
        LiveView(console, run) as view,
    ):
        view.phase(f"up: kafka.bootstrap = {run.settings.kafka.bootstrap}, folder {folder.root}")
        run.wait(lambda: run.drained, on_tick=view.tick)
        summary = summary_of(run)
    conclude(run, summary, console)


def write_and_drain(run: Launched, view: LiveView, write: Sequence[str]) -> None:
    """Let a child write all events, then wait until every flow has applied them."""
    run.supervisor.add(Group(name=EVENTS, commands=lambda: [write], restart=False))
    view.phase("events are written")
    run.wait(lambda: run.supervisor.finished(EVENTS), on_tick=view.tick)
    view.phase("all is written, waiting for the flows")
    run.wait(lambda: run.drained, on_tick=view.tick)


def everyone_is_up(run: Launched) -> bool:
    """Whether each process has announced itself."""
    return all((run.folder.processes / f"{name}.json").exists() for name in (*FLOWS, SERVE))


def summary_of(run: Launched) -> Figures:
    """The figures at this moment; the flows may have ended."""
    run.scraper.scrape()
    return summarise(run.settings, run.folder, run.scraper.samples, run.supervisor.states())


def conclude(
    run: Launched, summary: Figures, console: Console, checks: Sequence[Check] = ()
) -> None:
    """Write and print what a run has come to."""
    write_json(run.folder.summary, summary)
    write_report(run.settings, run.folder, run.scraper.samples, summary)
    console.print(tables(summary))
    if checks:
        console.print(checks_table(checks), "")
    console.print(f"figures {shown(run.folder.summary)}")
    console.print(f"report  {shown(run.folder.report)}")


def shown(path: Path) -> str:
    """A path as short as it gets, to be clicked or copied."""
    absolute = path.resolve()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def default_config(name: str) -> Path:
    """`configs/<name>.toml` of the checkout, or of the folder that the command runs in."""
    candidates = [root / "configs" / f"{name}.toml" for root in (Path.cwd(), CHECKOUT)]
    return next((path for path in candidates if path.is_file()), candidates[-1])
