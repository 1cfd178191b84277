"""What a run's folder says of its processes, models and snapshots, now."""

from __future__ import annotations

import json

import psutil
from rich.console import Group
from rich.table import Table

from flows.report.figures import quality_documents
from flows.report.scrape import Scraper
from flows.run_folder import RunFolder
from flows.wording import moment, number, percent
from onnx_export.store import SnapshotStore


def status(folder: RunFolder, store: SnapshotStore) -> Group:
    """Tables of processes, models and snapshots."""
    return Group(processes_table(folder), models_table(folder), snapshots_table(store))


def processes_table(folder: RunFolder) -> Table:
    """Each process that announced itself, whether it is there, and its rates."""
    table = Table(title=f"Processes of {folder.root.name}")
    for head in ("process", "pid", "state", "events in", "rows out", "address"):
        table.add_column(head, justify="right" if head in ("events in", "rows out") else "left")
    sample = Scraper(folder.processes).scrape()
    for path in sorted(folder.processes.glob("*.json")):
        entry = json.loads(path.read_bytes())
        values = sample.values.get(path.stem, {})
        totals = {
            name: sum(value for (found, _), value in values.items() if found == name)
            for name in ("exfm_source_events_total", "exfm_sink_events_total")
        }
        table.add_row(
            path.stem,
            str(entry["pid"]),
            "running" if psutil.pid_exists(entry["pid"]) else "ended",
            *(number(value, 0) for value in totals.values()),
            str(entry.get("http") or entry.get("bootstrap") or entry["metrics"]),
        )
    return table


def models_table(folder: RunFolder) -> Table:
    """Quality of each model and task, as its trainer last wrote it."""
    table = Table(title="Quality, last two thirds of the stream")
    for head in ("model", "task", "examples", "NE", "gain"):
        table.add_column(head, justify="left" if head in ("model", "task") else "right")
    for model, document in quality_documents(folder).items():
        for task, figures in document["totals"].items():
            table.add_row(
                *(model, task, number(figures["n"], 0), number(figures["ne"]["student"])),
                percent(figures["gain"], signed=True),
            )
    return table


def snapshots_table(store: SnapshotStore, model: str | None = None) -> Table:
    """Versions of each model; the one that serves is marked."""
    table = Table(title=f"Snapshots in {store.root}")
    for head in ("model", "version", "serves", "examples", "newest example", "published"):
        table.add_column(head, justify="left" if head == "model" else "right")
    for name in [model] if model else store.models():
        latest = store.latest(name)
        for version in store.versions(name):
            manifest = store.manifest(name, version)
            table.add_row(
                *(name, str(version), "*" if version == latest else ""),
                f"{manifest.num_examples:,}",
                moment(manifest.newest_example_ms),
                moment(manifest.created_ms),
            )
    return table
