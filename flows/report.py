"""One HTML file with a run's tables and plots; it needs nothing else, not even a network."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from rich.console import Console

from flows.figures import freshness_s, lag, load_report, quality_documents
from flows.run_folder import RunFolder, write_atomically
from flows.scrape import Sample, rate
from flows.settings import Settings
from flows.summary import Figures, tables
from models.metrics import normalised_entropy

WINDOW_SHARE = 0.1
"""A point of an NE curve covers about this share of the stream, so that noise does not hide it."""
CURVES = {
    "student": ("student", "n", "positives"),
    "shadow": ("shadow", "n", "positives"),
    "FM": ("fm_covered", "n_covered", "positives_covered"),
    "Bayes": ("oracle", "n", "positives"),
}
"""Sum of log loss, rows and positives of each curve, as in `quality/<model>.json`."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>exfm: {title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; }}
pre {{ font: 12px/1.3 ui-monospace, monospace; overflow-x: auto; }}
</style>
<script>{script}</script></head><body>
<h1>{title}</h1>
{tables}
{plots}
</body></html>
"""

Interval = Mapping[str, Any]


def write_report(
    settings: Settings, folder: RunFolder, samples: Sequence[Sample], summary: Figures
) -> None:
    """Write `report.html` of a run."""
    plots = [
        *quality_plots(quality_documents(folder)),
        *series_plots(settings, list(samples)),
        latency_plot(load_report(folder)),
    ]
    page = PAGE.format(
        title=html.escape(folder.root.name),
        script=get_plotlyjs(),
        tables=tables_html(summary),
        plots="\n".join(
            plot.to_html(full_html=False, include_plotlyjs=False) for plot in plots if plot.data
        ),
    )
    write_atomically(folder.report, page.encode())


def tables_html(summary: Figures) -> str:
    """The end tables as they stand on a terminal."""
    console = Console(record=True, width=150, file=StringIO(), force_terminal=True)
    console.print(tables(summary))
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def quality_plots(documents: Mapping[str, Mapping[str, Any]]) -> list[go.Figure]:
    """NE over the stream, a plot a model and task."""
    plots = []
    for model, document in documents.items():
        for task in document["tasks"]:
            intervals = [row for row in document["intervals"] if row["task"] == task]
            plots.append(quality_plot(f"{model}, {task}: NE over the stream", intervals))
    return plots


def quality_plot(title: str, intervals: Sequence[Interval]) -> go.Figure:
    """NE of student, shadow, teacher and Bayes."""
    plot = figure(title, "normalised entropy")
    for name, (loss, count, positives) in CURVES.items():
        points = ne_curve(intervals, loss, count, positives)
        if points:
            times, values = zip(*points, strict=True)
            plot.add_scatter(x=minutes(times, intervals), y=values, name=name, mode="lines")
    plot.update_xaxes(title="event time, minutes")
    return plot


def ne_curve(
    intervals: Sequence[Interval], loss: str, count: str, positives: str
) -> list[tuple[int, float]]:
    """Start of an interval and NE of it and those before it, about `WINDOW_SHARE` of the stream."""
    window = max(1, round(len(intervals) * WINDOW_SHARE))
    points = []
    for end in range(1, len(intervals) + 1):
        rows = intervals[max(0, end - window) : end]
        losses = [row[loss] for row in rows]
        if None in losses or not sum(losses):
            continue
        sums = [sum(row[name] for row in rows) for name in (positives, count)]
        ne = normalised_entropy(sum(losses), *sums)
        if math.isfinite(ne):
            points.append((int(rows[-1]["interval_start_ms"]), ne))
    return points


def minutes(times_ms: Iterable[int], intervals: Sequence[Interval]) -> list[float]:
    """Event times as minutes since the first interval."""
    first = int(intervals[0]["interval_start_ms"])
    return [(time - first) / 60_000 for time in times_ms]


def series_plots(settings: Settings, samples: list[Sample]) -> list[go.Figure]:
    """Freshness, throughput and lag over the wall clock."""
    topic = settings.topics.impressions.name

    def throughput(position: int) -> dict[str, float]:
        recent = samples[max(0, position - 10) : position + 1]
        found = {"joined": rate(recent, "exfm_das_windows_closed_total")}
        models = samples[position].by("model", "exfm_train_examples_total")
        for model in models:
            name = "exfm_train_examples_total"
            found[f"applied by {model}"] = rate(recent, name, model=model)
        return found

    def at(reading: Callable[[Sample], dict[str, float]]) -> Callable[[int], dict[str, float]]:
        return lambda position: reading(samples[position])

    return [
        series_plot(
            "Freshness",
            "s, age of the newest example that serves",
            samples,
            at(lambda sample: freshness_s(sample, topic)),
        ),
        series_plot("Throughput", "examples a second", samples, throughput),
        series_plot("Lag", "messages not read yet", samples, at(lag)),
    ]


def series_plot(
    title: str, unit: str, samples: Sequence[Sample], values: Callable[[int], dict[str, float]]
) -> go.Figure:
    """Named values over the wall clock."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for position, sample in enumerate(samples):
        for name, value in values(position).items():
            times, found = lines.setdefault(name, ([], []))
            times.append(sample.at_s - samples[0].at_s)
            found.append(value)
    plot = figure(title, unit)
    for name, (times, found) in lines.items():
        plot.add_scatter(x=times, y=found, name=name, mode="lines")
    plot.update_xaxes(title="wall clock, seconds")
    return plot


def latency_plot(load: Mapping[str, Any]) -> go.Figure:
    """Percentiles of the load's newest requests over the wall clock."""
    plot = figure("Request latency", "ms")
    series = load.get("series", [])
    for name in ("p50_ms", "p99_ms"):
        points = [(p["at_s"] - series[0]["at_s"], p[name]) for p in series if name in p]
        if points:
            times, values = zip(*points, strict=True)
            plot.add_scatter(x=times, y=values, name=name.removesuffix("_ms"), mode="lines")
    plot.update_xaxes(title="wall clock, seconds")
    return plot


def figure(title: str, unit: str) -> go.Figure:
    """An empty plot."""
    plot = go.Figure()
    plot.update_layout(title=title, template="plotly_white", height=380)
    plot.update_yaxes(title=unit)
    return plot
