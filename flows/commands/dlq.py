"""The command line of the dead letters: `exfm dlq --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.run.setup import (
    FAILED,
    INTERRUPTED,
    Config,
    Run,
    console,
    existing_folder,
    fail,
    reachable_settings,
)

if TYPE_CHECKING:
    import polars as pl

    from flows.letters.log import LetterLog
    from flows.letters.replay import Sent
    from flows.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Look at what was set aside, and send it again.")

Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PLACE]...", help="TOPIC:PARTITION:OFFSET[:INDEX]; default: all."),
]
Topic = Annotated[str | None, typer.Option(help="Only events of this topic.")]
Reason = Annotated[str | None, typer.Option(help="Only those set aside for this reason.")]
Since = Annotated[
    str | None,
    typer.Option(metavar="AGE|TIME", help="Only those set aside since: 10m, 2h, 2026-01-31T12:00."),
]


@app.command("ls")
def list_letters(
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    config: Config = None,
    run: Run = None,
) -> None:
    """Count the dead letters by topic and reason, each event once.

    Example: `exfm dlq ls --run market --since 1h`
    """
    from flows.letters.tables import letters_table

    settings = reachable_settings(config, existing_folder(run))
    _, letters = chosen(settings, None, topic, reason, since)
    console().print(letters_table(letters, f"Topic {settings.topics.dead_letters.name}"))
    if strangers := letters["topic"].null_count():
        console().print(f"{strangers:,} more messages do not say where they come from")


@app.command()
def show(
    places: Places = None,
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 10,
    raw: Annotated[bool, typer.Option("--raw", help="One letter's bytes to stdout.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One letter's bytes to a file.")
    ] = None,
    config: Config = None,
    run: Run = None,
) -> None:
    """Show dead letters with their headers: text if it is UTF-8, else hexadecimal digits.

    Example: `exfm dlq show labels:0:17 --out label.json --run market`
    """
    from flows.letters.tables import cut_short, letter_text

    settings = reachable_settings(config, existing_folder(run))
    log, letters = chosen(settings, places, topic, reason, since)
    letters = letters.drop_nulls("topic")
    if letters.is_empty():
        fail("no dead letter is chosen", FAILED)
    if not raw and out is None:
        for message in log.messages(letters.sort("at_ms", maintain_order=True).tail(limit)):
            sys.stdout.write(letter_text(message) + "\n")
        return
    if letters.height > 1:
        fail(f"--raw and --out take one dead letter, {letters.height:,} are chosen: name its place")
    letter = next(log.messages(letters))
    if out is not None:
        write(letter.value() or b"", out)
    if raw:
        sys.stdout.buffer.write(letter.value() or b"")
    missing = cut_short(letter)
    if missing is not None:
        fail(missing, FAILED)


@app.command()
def replay(
    places: Places = None,
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
    run: Run = None,
) -> None:
    """Send dead letters back to the topics they came from: each event once, byte for byte.

    Events that are still wrong come back as newer letters of the same events.
    Example: `exfm dlq replay --reason unknown_domain --run market --dry-run`
    """
    import polars as pl

    from flows.letters.replay import check_destinations
    from flows.letters.tables import letters_table

    settings = reachable_settings(config, existing_folder(run))
    log, letters = chosen(settings, places, topic, reason, since)
    console().print(letters_table(letters, "To send"))
    letters = letters.drop_nulls("topic")
    if letters.is_empty():
        fail("no dead letter is chosen", FAILED)
    if letters["cut"].any():
        num = int(letters["cut"].sum())
        letters = letters.filter(~pl.col("cut"))
        console().print(
            f"{num:,} of them hold only the first bytes of an event or its key and stay"
        )
    check_destinations(settings, letters)
    console().print("What is still wrong with them, or late, comes back: as a newer letter")
    if dry_run:
        console().print(f"{letters.height:,} events would be sent")
        return
    if not yes:
        typer.confirm(f"Send {letters.height:,} events?", abort=True)
    done = sent(settings, log, letters)
    if done.events < letters.height:
        fail(f"interrupted: of {letters.height:,}, {done}", INTERRUPTED)
    console().print(f"{done.acknowledged:,} events sent and acknowledged")


def write(data: bytes, out: Path) -> None:
    """Write a file."""
    try:
        out.write_bytes(data)
    except OSError as error:
        fail(f"--out {out} cannot be written: {error.strerror}", FAILED)


def chosen(
    settings: Settings,
    places: list[str] | None,
    topic: str | None,
    reason: str | None,
    since: str | None,
) -> tuple[LetterLog, pl.DataFrame]:
    """The log, and those of its letters that a command names: the newest of each event."""
    from flows.letters.choice import Choice, parsed_places, parsed_since
    from flows.letters.log import LetterLog, distinct

    try:
        choice = Choice(topic=topic, reason=reason, places=parsed_places(places or ()))
        since_ms = None if since is None else parsed_since(since)
    except ValueError as error:
        fail(str(error))
    log = LetterLog(settings)
    if not log.exists:
        name = settings.topics.dead_letters.name
        fail(f"there is no topic {name!r}; topics.dead_letters.name must name one", FAILED)
    return log, choice.of(distinct(log.index(since_ms)))


def sent(settings: Settings, log: LetterLog, letters: pl.DataFrame) -> Sent:
    """Send letters under a progress bar, until a signal asks to stop."""
    from rich.console import Console
    from rich.progress import Progress

    from flows.letters.replay import replay as send
    from flows.runner import stop_requested, stopping_on_signals

    with (
        stopping_on_signals(),
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("sending", total=letters.height)
        return send(settings, log, letters, lambda: progress.advance(task), stop_requested)
