"""The command line of the join: `exfm das --help`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from flows.run.setup import FAILED, Config, Run, console, existing_folder, fail, load_settings

app = typer.Typer(no_args_is_help=True, help="Look into the join of labels.")


@app.callback()
def group() -> None:
    """Look into the join of labels."""


@app.command()
def inspect(
    shard: Annotated[
        int | None, typer.Option(min=0, help="Whose inputs to show; default: the slowest eight.")
    ] = None,
    checksums: Annotated[
        bool,
        typer.Option("--checksums", help="Read all files of the state, not their sizes only."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    config: Config = None,
    run: Run = None,
) -> None:
    """Show what waits in the join and what it waits for, while it runs or from its state.

    Example: `exfm das inspect --run market`
    """
    from flows.join.inspection import inspect as look
    from flows.join.recovery import WAY_OUT
    from flows.join.tables import inspection_tables

    folder = existing_folder(run)
    settings = load_settings(config or folder.config)
    if shard is not None and shard >= settings.das.shards:
        fail(f"--shard {shard} must be below das.shards = {settings.das.shards}")
    found = look(settings, folder, checksums=checksums)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        console().print(inspection_tables(found, folder.root.name, shard))
    if found.damaged:
        fail(f"{len(found.damaged)} files of the state are gone or damaged; {WAY_OUT}", FAILED)
