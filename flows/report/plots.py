"""The plots of a run's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from flows.report import palette
from flows.report.figures import freshness_series, lag
from flows.report.ne_curve import Document, EventTime, curves
from flows.report.scrape import Sample, rate
from flows.settings import Settings
from flows.wording import percent

RATE_S = 10.0
"""Rates are taken over this time."""
HEIGHT = 300
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', sans-serif"
GRID, INK, FAINT = "#e2e8f0", "#334155", "#64748b"

Series = dict[str, tuple[list[float], list[float | None]]]
"""By name: seconds since the first sample, and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A plot and what stands over it."""

    title: str
    note: str
    """The unit, or the result."""
    figure: go.Figure
    gain: float | None = None
    """What the note shows, if that is a gain."""


def quality_plots(
    documents: Mapping[str, Document], order: Sequence[str], totals: Mapping[str, Document]
) -> Iterator[Plot]:
    """NE over the stream, a plot a model and task.

    Args:
        documents: of each model.
        order: of the models.
        totals: figures by model and task, for the gain.
    """
    axis = EventTime(documents.values())
    for model in order:
        document = documents[model]
        for task in document["tasks"]:
            plot = empty(f"event time, {axis.unit}", axis.length)
            for name, points in curves(document, task).items():
                times_ms, values = zip(*points, strict=True)
                draw(plot, name, axis.of(times_ms), values, palette.CURVES[name], ":.4f")
            gain = totals.get(model, {}).get(task, {}).get("gain")
            note = "" if gain is None else f"gain {percent(gain, signed=True)}"
            if plot.data:
                yield Plot(title=f"{model}, {task}", note=note, figure=plot, gain=gain)


def series_plots(
    settings: Settings, samples: Sequence[Sample], load: Sequence[Mapping[str, float]]
) -> Iterator[Plot]:
    """Freshness, throughput, lag and latency over the wall clock.

    Args:
        settings: of the run.
        samples: its metrics over time.
        load: what the load driver saw, by second.
    """
    if not samples:
        return
    topic = settings.topics.impressions.name
    models = palette.of_models(student.name for student in settings.students)
    colours = {**models, "joined": palette.QUEUES[0]}
    fresh = series(samples, freshness_series(samples, topic))
    queues = series(samples, [lag(sample) for sample in samples])
    latency = latencies(load, samples[0].at_s)
    length_s = samples[-1].at_s - samples[0].at_s
    if fresh:
        yield timed(
            "Freshness", "s, age of the newest example that serves", length_s, fresh, colours
        )
    rates = series(samples, throughput(list(samples)))
    yield timed("Throughput", "examples/s, logarithmic", length_s, rates, colours, log=True)
    queue_colours = palette.in_turn(sorted(queues), palette.QUEUES)
    yield timed("Lag", "messages not read yet", length_s, queues, queue_colours)
    percentiles = {"p50": palette.STUDENT, "p99": palette.FM}
    yield timed("Request latency", "ms, as the client sees it", length_s, latency, percentiles)


def throughput(samples: list[Sample]) -> list[dict[str, float]]:
    """Examples a second that the join emits and each model applies, at each sample."""
    applied = "exfm_train_examples_total"
    rates, first = [], 0
    for position, sample in enumerate(samples):
        while samples[first].at_s < sample.at_s - RATE_S:
            first += 1
        recent = samples[first : position + 1]
        found = {"joined": rate(recent, "exfm_das_windows_closed_total", RATE_S)}
        for model in sample.by("model", applied):
            found[model] = rate(recent, applied, RATE_S, model=model)
        rates.append(found)
    return rates


def latencies(load: Sequence[Mapping[str, float]], begin_s: float) -> Series:
    """Percentiles of the load's newest requests."""
    found: Series = {}
    for name in ("p50", "p99"):
        points = [(point["at_s"], point[f"{name}_ms"]) for point in load if f"{name}_ms" in point]
        if points:
            found[name] = ([at_s - begin_s for at_s, _ in points], [value for _, value in points])
    return found


def series(samples: Sequence[Sample], values: Sequence[Mapping[str, float]]) -> Series:
    """Values at each sample as a series a name."""
    found: Series = {}
    for sample, now in zip(samples, values, strict=True):
        for name, value in now.items():
            times, line = found.setdefault(name, ([], []))
            times.append(sample.at_s - samples[0].at_s)
            line.append(value)
    return found


def timed(
    title: str,
    note: str,
    length_s: float,
    lines: Series,
    colours: Mapping[str, str],
    *,
    log: bool = False,
) -> Plot:
    """Series over the wall clock; on a logarithmic axis a zero is a gap."""
    plot = empty("wall clock, seconds", length_s)
    for name in [name for name in colours if name in lines]:
        times, values = lines[name]
        shown = [value or None for value in values] if log else values
        draw(plot, name, times, shown, colours[name], ":,.4~g")
    if log:
        plot.update_yaxes(type="log", dtick=1, exponentformat="SI")
    else:
        plot.update_yaxes(rangemode="tozero")
    return Plot(title=title, note=note, figure=plot)


def draw(
    plot: go.Figure,
    name: str,
    times: Sequence[float],
    values: Sequence[float | None],
    colour: str,
    digits: str,
) -> None:
    """Add a line; a single value is a dot."""
    plot.add_scatter(
        x=times,
        y=values,
        name=name,
        mode="lines" if len(times) > 1 else "markers",
        line={"color": colour, "width": 2},
        hovertemplate=f"%{{y{digits}}}",
    )


def empty(time_title: str, length: float) -> go.Figure:
    """An empty plot from time 0 to `length`."""
    plot = go.Figure()
    plot.update_layout(
        template="plotly_white",
        height=HEIGHT,
        margin={"l": 54, "r": 12, "t": 6, "b": 40},
        font={"family": FONT, "size": 12, "color": INK},
        hovermode="x unified",
        hoverlabel={"bgcolor": "white", "bordercolor": GRID},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "tickfont": {"color": FAINT}}
    plot.update_xaxes(
        **axis,
        range=[0, length or 1],
        hoverformat=".4~g",
        title={"text": time_title, "font": {"size": 11, "color": FAINT}, "standoff": 6},
    )
    plot.update_yaxes(**axis, zeroline=False, automargin=True)
    return plot
