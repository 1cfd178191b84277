"""Real delays: positives that the join finds, against a plain join of the raw files.

    python -m benchmarks.taobao DIR [--run runs/taobao-check]

Replays all of Taobao's page views through all processes over a Kafka at full speed, windows of one
hour and one day in one flow, then makes the examples again by a backfill to Parquet, and prints a
line a claim; exit code 0 only if all hold. The reference takes all pairs of a view and a later
action of the same user and item, and of each action's views the last; it shares no code with the
replay (flows/datasets/taobao.py).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import typer

from benchmarks.examples import accepted_examples, table_digest
from flows.backfill.backfill import backfill
from flows.backfill.plan import Request
from flows.backfill.targets import ParquetTarget, Watch
from flows.config_file import dump
from flows.records import example_schema
from flows.report.checks import Check, checks_table
from flows.run.demo import EVENTS, default_config
from flows.run.launch import exfm, launched
from flows.run.process import configure_logging
from flows.run.setup import console
from flows.run.supervisor import Group
from flows.run_folder import RunFolder
from flows.settings import Settings, load
from models.durable import write_atomically

RAW = "events.csv.gz"
VIEWS = "pv_with_delayed_conversions.csv.gz"
"""Each page view with the time of its first action, as it was published with the sample."""
SAME = ["user_id", "item_id"]


def read_raw(folder: Path) -> pl.DataFrame:
    """The raw log: user_id, item_id, category_id, behavior, ts (seconds)."""
    return pl.read_csv(folder / RAW)


def positives_raw(raw: pl.DataFrame, action: str, window_s: float) -> int:
    """Page views with an action within a window, by a plain join."""
    views = raw.filter(pl.col("behavior") == "pv").select(*SAME, shown="ts").unique()
    acted = raw.filter(pl.col("behavior") == action).select(*SAME, acted="ts")
    pairs = views.join(acted, on=SAME).filter(pl.col("shown") <= pl.col("acted"))
    last = pairs.group_by(*SAME, "acted").agg(pl.col("shown").max())
    within = last.filter(pl.col("acted") - pl.col("shown") < window_s)
    return within.select(*SAME, "shown").unique().height


def positives_of_views(folder: Path, action: str, window_s: float) -> int | None:
    """The same from the published file of page views; None if it is not there."""
    path = folder / VIEWS
    if not path.is_file():
        return None
    views = pl.read_csv(path, infer_schema_length=None)
    return views.filter(pl.col(f"{action}_ts") - pl.col("ts") < window_s).height


def checks(settings: Settings, folder: Path, examples: pl.DataFrame) -> list[Check]:
    """Every page view accounted for, every positive found.

    Args:
        settings: of the run.
        folder: of the data.
        examples: accepted ones.
    """
    raw = read_raw(folder)
    num_views = raw.filter(pl.col("behavior") == "pv").height
    windows = len(settings.windows_ms)
    found = [
        Check(
            name="rows",
            value=f"{len(examples):,}",
            rule=f"{num_views:,} page views x {windows} windows",
            passed=len(examples) == windows * num_views,
        )
    ]
    for task in settings.tasks:
        action = task.name.rpartition("_")[0]
        rows = examples.filter(pl.col(f"mask_{task.name}"))
        unique = rows["impression_id"].n_unique()
        found.append(
            Check(
                name=f"page views accounted for, {task.name}",
                value=f"{unique:,} examples, {len(rows) - unique} repeated",
                rule=f"{num_views:,}, 0 repeated",
                passed=unique == len(rows) == num_views,
            )
        )
        positive = rows.filter(pl.col(f"label_{task.name}") == 1).height
        wanted = positives_raw(raw, action, task.window_s)
        listed = positives_of_views(folder, action, task.window_s)
        found.append(
            Check(
                name=f"positives found, {task.name}",
                value=f"{positive:,}",
                rule=f"{wanted:,} of a plain join"
                + ("" if listed is None else f", {listed:,} of the published views"),
                passed=positive == wanted == (wanted if listed is None else listed),
            )
        )
    return found


def replayed(settings: Settings, folder: RunFolder, data: Path) -> tuple[pl.DataFrame, Check]:
    """Examples of a whole replay at full speed, and whether a backfill makes the same."""
    write_atomically(folder.config, dump(settings).encode())
    write = exfm("replay", "taobao", str(data), "--write-only", folder=folder)
    with launched(settings, folder) as run:
        run.supervisor.add(Group(name=EVENTS, commands=lambda: [write], restart=False))
        run.wait(lambda: run.drained and run.supervisor.finished(EVENTS))
        made = accepted_examples(run.settings)
        again = backfilled(run.settings, folder.root / "parquet")
    frame = pl.from_arrow(made.table)
    assert isinstance(frame, pl.DataFrame)
    check = Check(
        name="examples of a backfill to Parquet",
        value=f"{len(again):,}, digest {table_digest(again)[:12]}",
        rule=f"digest {made.digest[:12]} of the run's",
        passed=again.equals(made.table),
    )
    return frame, check


def backfilled(settings: Settings, path: Path) -> pa.Table:
    """Examples of a backfill, by shard and running number."""
    unseen = Watch(on_offsets=lambda _, __: None, on_rows=lambda _, __: None)
    backfill(settings, Request(starts={}, ends={}), ParquetTarget(path), unseen)
    schema = example_schema(settings)
    rows = ds.dataset(path, partitioning="hive").to_table().select(schema.names).cast(schema)
    return rows.sort_by([("shard", "ascending"), ("number", "ascending")]).combine_chunks()


def main(
    data: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False)],
    run: Annotated[Path, typer.Option(help="A folder that is new.")] = Path("runs/taobao-check"),
) -> None:
    """Replay, join the raw files, and compare."""
    configure_logging(logging.WARNING)
    if run.exists():
        sys.exit(f"--run {run} exists; name another")
    settings = load(default_config("taobao"))
    examples, same = replayed(settings, RunFolder(run), data)
    found = [*checks(settings, data, examples), same]
    console().print(checks_table(found))
    sys.exit(0 if all(check.passed for check in found) else 1)


if __name__ == "__main__":
    typer.run(main)
