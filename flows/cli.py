"""The command line: `exfm --help`.

Exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 130 interrupted. What a command needs
is imported inside it, so that help comes at once.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands import backfill, bench, das, dlq
from flows.run.errors import end, told
from flows.run.setup import (
    FAILED,
    INTERRUPTED,
    Config,
    Run,
    begin,
    console,
    existing_folder,
    fail,
    folder_of,
    load_settings,
    new_folder,
    parsed_addresses,
    parsed_speed,
    reachable_settings,
    store_of,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A large teacher improves small ranking models over Kafka, while they serve.",
)
snapshots = typer.Typer(no_args_is_help=True, help="List snapshots, or serve an older one.")
app.add_typer(snapshots, name="snapshots")
app.add_typer(bench.app, name="bench")
app.add_typer(das.app, name="das")
app.command()(backfill.backfill)
app.add_typer(dlq.app, name="dlq")

Process = Literal["das", "fm-inference", "fm-training", "vm-training", "serve"]
Dataset = Literal["kuairand", "taobao"]
Seed = Annotated[int, typer.Option(help="Moves every seed: models, market, noise.")]
Speed = Annotated[
    str, typer.Option(metavar="max|FLOAT", help="Event seconds a second; max: all at once.")
]
DasProcesses = Annotated[
    int, typer.Option("--das-processes", min=1, help="Processes that share the join.")
]


@app.command()
def demo(
    config: Config = None,
    run: Run = None,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the stream.")] = 210.0,
    seed: Seed = 0,
) -> None:
    """Run the whole loop on a simulated ad market, under load, and measure the gain.

    Exit code 0 only if the bars of the last table hold. Example: `exfm demo --seconds 120`
    """
    from flows.run.demo import default_config
    from flows.run.demo import demo as run_demo
    from flows.run.process import configure_logging

    configure_logging(logging.WARNING)
    folder = new_folder(run, "demo")
    settings = begin(folder, config or default_config("market"), seed=seed)
    checks = run_demo(settings, folder, seconds=seconds, console=console())
    failed = [check.name for check in checks if not check.passed]
    if failed:
        fail(f"not reached: {'; '.join(failed)}", FAILED)


@app.command()
def up(config: Config = None, run: Run = None, das_processes: DasProcesses = 1) -> None:
    """Run all processes under one supervisor, which restarts what dies.

    Starts a Kafka of its own unless `kafka.bootstrap` or EXFM_BOOTSTRAP names one. Stopped by
    Ctrl-C, it goes on where it was. Example: `exfm up --config configs/market.toml --run market`
    """
    from flows.run.demo import keep_up
    from flows.run.process import configure_logging

    configure_logging(logging.WARNING)
    folder = folder_of(run or "default")
    settings = begin(folder, config) if config else load_settings(folder.config)
    keep_up(settings, folder, das_processes=das_processes, console=console())


@app.command("run")
def run_one(
    process: Annotated[Process, typer.Argument(help="Which.", show_default=False)],
    config: Config = None,
    run: Run = None,
    process_id: Annotated[
        int, typer.Option("--process-id", "-i", min=0, help="Position among --address.")
    ] = 0,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", "-a", metavar="HOST:PORT", help="Each process of this flow."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Threads.")] = 1,
) -> None:
    """Run one process, until its log has ended or SIGTERM stops it.

    Example: `EXFM_BOOTSTRAP=kafka:9092 exfm run das --config configs/market.toml --run market`
    """
    from flows.run.process import run_process
    from flows.runner import Placement

    folder = folder_of(run or "default")
    settings = load_settings(config or folder.config)
    addresses = parsed_addresses(address or [], process_id)
    placement = Placement(process_id=process_id, addresses=addresses, workers=workers)
    run_process(process, settings, folder, placement)


@app.command()
def replay(
    dataset: Annotated[Dataset, typer.Argument(help="Which.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="The data set as published."
        ),
    ],
    config: Config = None,
    run: Run = None,
    seed: Seed = 0,
    speed: Speed = "max",
    das_processes: DasProcesses = 1,
    shuffle_teacher: Annotated[
        bool, typer.Option("--shuffle-teacher", help="Control: shuffle predictions by domain.")
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Only write the events to the configured Kafka.")
    ] = False,
) -> None:
    """Replay a data set through all processes, wait until it is learned, and measure.

    Example: `exfm replay kuairand data/kuairand_pure --seed 1 --das-processes 2`
    """
    from flows.datasets import feed
    from flows.run.demo import default_config, replay_dataset
    from flows.run.launch import exfm
    from flows.run.process import configure_logging

    pace = parsed_speed(speed)
    if write_only:
        folder = folder_of(run or "default")
        settings = load_settings(config or folder.config)
        feed.write_events(settings, folder, feed.dataset(dataset, settings, data, pace), pace)
        return
    configure_logging(logging.WARNING)
    folder = new_folder(run, dataset)
    settings = begin(
        folder, config or default_config(dataset), seed=seed, shuffle_teacher=shuffle_teacher
    )
    write = exfm("replay", dataset, str(data), f"--speed={speed}", "--write-only", folder=folder)
    replay_dataset(settings, folder, write, das_processes=das_processes, console=console())


@app.command()
def simulate(
    config: Config = None,
    run: Run = None,
    seconds: Annotated[float, typer.Option(min=1, help="Event time to simulate.")] = 210.0,
    seed: Seed = 0,
    speed: Speed = "1",
) -> None:
    """Write the simulated market to the Kafka of the configuration, or of a run that is up.

    At its end, or when it is stopped, the log has ended: nothing written later is read.

    Example: `exfm simulate --run market --seconds 600`
    """
    from flows.config_file import seeded
    from flows.datasets import feed

    folder = folder_of(run or "default")
    settings = seeded(reachable_settings(config, folder), seed)
    events = feed.market(settings, seconds)
    written = feed.write_events(settings, folder, events, parsed_speed(speed))
    console().print(
        f"{written.impressions:,} impressions and {written.labels:,} labels; the log has ended"
    )


@app.command()
def load(
    config: Config = None,
    run: Run = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 20.0,
    rows: Annotated[int, typer.Option(min=1, help="Candidates a request.")] = 20,
) -> None:
    """Send a light load to the run's server, made of its own impressions, until stopped.

    Example: `exfm load --run market --rate 50`
    """
    from flows.run.load import drive
    from flows.run.process import configure_logging
    from flows.runner import stop_requested, stopping_on_signals

    configure_logging()
    folder = folder_of(run or "default")
    settings = reachable_settings(config, folder)
    with stopping_on_signals():
        drive(settings, folder, rate=rate, rows=rows, should_stop=stop_requested)


@app.command()
def status(config: Config = None, run: Run = None) -> None:
    """Show a run's processes, models and snapshots.

    Example: `exfm status --run market`
    """
    from flows.run.status import status as tables

    folder = existing_folder(run)
    console().print(tables(folder, store_of(config, folder)))


@snapshots.command("ls")
def list_snapshots(
    model: Annotated[str | None, typer.Argument(help="Default: all models.")] = None,
    config: Config = None,
    run: Run = None,
) -> None:
    """List the versions of each model; the one that serves has a star.

    Example: `exfm snapshots ls --run market`
    """
    from flows.run.status import snapshots_table

    console().print(snapshots_table(store_of(config, existing_folder(run)), model))


@snapshots.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Which.", show_default=False)],
    version: Annotated[int | None, typer.Argument(help="Default: the one before.")] = None,
    config: Config = None,
    run: Run = None,
) -> None:
    """Serve an older version until a newer one is published.

    Example: `exfm snapshots rollback feed_late --run market`
    """
    store = store_of(config, existing_folder(run))
    try:
        serves = store.rollback(model, version)
    except LookupError as error:
        fail(str(error.args[0]), FAILED)
    console().print(f"{model} serves {serves}")


def main() -> None:
    """Entry point; user errors are one line each."""
    try:
        app()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        found = told(error)
        if found is None:
            raise
        end(*found)
    finally:
        gc.freeze()  # else the interpreter looks through all that was imported before it ends


if __name__ == "__main__":
    main()
