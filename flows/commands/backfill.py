"""The command line of backfills: `exfm backfill --help`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from flows.run.setup import (
    INTERRUPTED,
    Config,
    Run,
    console,
    existing_folder,
    fail,
    load_settings,
    warn,
)

if TYPE_CHECKING:
    from flows.backfill.plan import Request
    from flows.backfill.targets import Target, Watch
    from flows.run_folder import RunFolder
    from flows.settings import Settings


def backfill(
    parquet: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Parquet files, partitioned by day and domain."),
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Another topic of examples.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Impressions shown then or later, as 2026-01-31T12:00 (UTC).",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Impressions shown before.")
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC:PARTITION:OFFSET", help="Where to begin; others: the oldest record."
        ),
    ] = None,
    end: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC:PARTITION:OFFSET", help="Where to end; others: what is there now."
        ),
    ] = None,
    leave_out_quiet: Annotated[
        bool,
        typer.Option("--leave-out-quiet", help="A partition read to its end holds no window back."),
    ] = False,
    config: Config = None,
    run: Run = None,
) -> None:
    """Make the examples of a log again, into Parquet files or another topic.

    The run goes on undisturbed. Stopped or killed, the same command goes on where it was.
    Example: `exfm backfill --run market --from 2026-01-31 --to 2026-02-01 --parquet examples`
    """
    from flows.backfill.backfill import backfill as fill
    from flows.backfill.set_aside import told
    from flows.run.process import configure_logging

    configure_logging()
    folder = existing_folder(run)
    target = target_of(folder, parquet, topic)
    request = requested(since, until, start or [], end or [], leave_out_quiet)
    with kafka_of(config, folder) as settings, watched() as watch:
        result = fill(settings, request, target, watch)
    if result is None:
        fail("stopped; the same command goes on where it was", INTERRUPTED)
    console().print(result.tables(f"Backfill to {parquet or topic}"))
    for name, counts in result.set_aside.items():
        warn(f"topic {name!r}: {told(counts)} were set aside, and count for no example")


def target_of(folder: RunFolder, parquet: Path | None, topic: str | None) -> Target:
    """Where the examples of a run's log shall go."""
    from flows.backfill.targets import ParquetTarget, TopicTarget

    if parquet is not None and topic is None:
        return ParquetTarget(parquet)
    if topic is not None and parquet is None:
        return TopicTarget(folder, topic)
    fail("give one of --parquet DIR and --topic NAME")


def requested(
    since: str | None, until: str | None, start: list[str], end: list[str], leave_out_quiet: bool
) -> Request:
    """What the options ask for."""
    from flows.backfill.plan import Request, parsed_offsets
    from flows.letters.choice import parsed_time
    from flows.records import BEGIN_MS, END_MS

    try:
        return Request(
            from_ms=BEGIN_MS if since is None else parsed_time(since, "--from is a time"),
            to_ms=END_MS if until is None else parsed_time(until, "--to is a time"),
            starts=parsed_offsets("--start", start),
            ends=parsed_offsets("--end", end),
            leave_out_quiet=leave_out_quiet,
        )
    except ValueError as error:
        fail(str(error))


@contextmanager
def kafka_of(config: Path | None, folder: RunFolder) -> Iterator[Settings]:
    """Settings of a run with a Kafka that answers: the run's own is started if the run is down."""
    from flows.kafka.broker import EmbeddedKafka
    from flows.run import broker_address
    from flows.run_lock import held

    settings = load_settings(folder.config)
    if config is not None:
        settings = other(load_settings(config), settings)
    bootstrap = settings.kafka.bootstrap or broker_address.announced(folder.processes)
    if bootstrap is None and not folder.broker.is_dir():
        fail(f"{folder.root} has no Kafka of its own; name a broker in EXFM_BOOTSTRAP")
    if bootstrap is not None:
        yield reached(settings, bootstrap)
        return
    with (
        held(folder.root / ".lock", f"run {folder.root}"),
        EmbeddedKafka(folder.broker) as broker,
    ):
        yield reached(settings, broker.bootstrap)


def other(asked: Settings, own: Settings) -> Settings:
    """Another configuration for the log of a run.

    Args:
        asked: the configuration.
        own: that of the run.

    Raises:
        SettingsError: the predictions in the log do not fit it.
    """
    from flows.settings import SettingsError

    if asked.das.shards != own.das.shards:
        raise SettingsError(
            f"--config: das.shards = {asked.das.shards} must be {own.das.shards} as in the run, "
            "whose predictions stand where this number puts them"
        )
    names = [task.name for task in own.tasks]
    for task in asked.tasks:
        if task.name not in names:
            raise SettingsError(
                f"--config: tasks: {task.name!r} must be one of the run's, "
                f"{', '.join(names)}: predictions are logged for these only"
            )
    return asked


def reached(settings: Settings, bootstrap: str) -> Settings:
    """Settings with the address of a broker."""
    kafka = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    return settings.model_copy(update={"kafka": kafka})


@contextmanager
def watched() -> Iterator[Watch]:
    """Progress on a terminal."""
    from rich.console import Console

    from flows.backfill.targets import Watch

    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), TaskProgressColumn(), TimeElapsedColumn()),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        reading = bar.add_task("reading the log", total=None)
        writing = bar.add_task("writing files", total=None, visible=False)
        yield Watch(
            on_offsets=lambda done, total: bar.update(reading, completed=done, total=total),
            on_rows=lambda done, total: bar.update(
                writing, completed=done, total=total, visible=True
            ),
        )
