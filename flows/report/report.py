"""One HTML file with a run's tables and plots; it needs nothing else, not even a network."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from flows.report.checks import Check, checks_table
from flows.report.figures import load_report, quality_documents
from flows.report.plots import Plot, quality_plots, series_plots
from flows.report.scrape import Sample
from flows.report.sheet import Sheet, Tone
from flows.report.summary import TEACHER, Figures
from flows.report.summary_tables import (
    models_table,
    processes_table,
    quality_table,
    rejected_table,
    serving_table,
    stream_table,
    teacher_last,
)
from flows.run_folder import RunFolder
from flows.settings import Settings
from flows.wording import age, duration, number, percent
from models.durable import write_atomically

TEMPLATE = "report.html"
CONFIG = {"displayModeBar": False, "responsive": True}

Tile = tuple[str, str]
"""A figure and what it is."""


def write_report(
    settings: Settings, folder: RunFolder, samples: Sequence[Sample], summary: Figures
) -> None:
    """Write `report.html` of a run."""
    documents = quality_documents(folder)
    curves = quality_plots(documents, list(teacher_last(documents)), summary["models"])
    series = series_plots(settings, samples, load_report(folder).get("series", []))
    template = files("flows.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=html.escape(folder.root.name),
        when=html.escape(when(summary)),
        verdict=verdict(summary),
        tiles="\n".join(tile_html(*tile) for tile in tiles(summary)),
        checks=cards([checks_table(checks_of(summary))]),
        quality=cards([quality_table(summary), models_table(summary)]),
        curves="\n".join(map(plot_html, curves)),
        series="\n".join(map(plot_html, series)),
        counts=counts(summary),
        configuration=configuration(folder),
        script=get_plotlyjs(),
    )
    write_atomically(folder.report, page.encode())


def when(summary: Figures) -> str:
    """Date and length of the run."""
    if summary["started_ms"] is None:
        return "nothing was measured"
    began = time.gmtime(summary["started_ms"] / 1000)
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", began)
    return f"{moment} · {duration(summary['wall_s'])}"


def checks_of(summary: Figures) -> list[Check]:
    """The demo's bars; none in other runs."""
    return [Check(**check) for check in summary.get("checks", [])]


def verdict(summary: Figures) -> str:
    """How many bars were reached."""
    checks = checks_of(summary)
    if not checks:
        return ""
    passed = sum(check.passed for check in checks)
    tone = "good" if passed == len(checks) else "bad"
    return f'<div class="verdict {tone}">{passed} of {len(checks)} checks passed</div>'


def tiles(summary: Figures) -> list[Tile]:
    """The figures that matter most; only those that were measured."""
    serving, load = summary["serving"], summary["serving"]["load"]
    figures = [(model, found) for model, by in summary["models"].items() for found in by.values()]
    gains = [found["gain"] for _, found in figures if found["gain"] is not None]
    covered = [
        found["coverage_after_first"]
        for model, found in figures
        if model != TEACHER and found["coverage_after_first"] is not None
    ]
    fresh = [found["median"] for found in serving["freshness_s"].values()]
    found: list[Tile] = [(number(sum(summary["stream"]["examples"].values()), 0), "examples")]
    if gains:
        ends = dict.fromkeys(f"{100 * gain:+.2f}" for gain in (min(gains), max(gains)))
        found.append((f"{' … '.join(ends)} %", "NE gain over the shadows"))
    if covered:
        found.append((percent(min(covered)), "with a prediction, once FM has a snapshot"))
    if fresh:
        found.append((age(max(fresh)), "median age of what serves"))
    if load:
        found.append((f"{number(load['p99_ms'], 1)} ms", "request latency, p99"))
        found.append(
            (number(load["failed"], 0), f"of {number(load['requests'], 0)} requests failed")
        )
    return found


def tile_html(figure: str, text: str) -> str:
    """One tile."""
    return f'<div class="card"><b>{html.escape(figure)}</b><span>{html.escape(text)}</span></div>'


def plot_html(plot: Plot) -> str:
    """A plot under its title."""
    drawn = plot.figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
    tone: Tone = "plain" if not plot.gain else "good" if plot.gain > 0 else "bad"
    over = f'<h3>{html.escape(plot.title)}</h3><span class="{tone}">{html.escape(plot.note)}</span>'
    return f'<div class="card plot"><div class="over">{over}</div>{drawn}</div>'


def counts(summary: Figures) -> str:
    """The tables of what was read, set aside and served, two by two."""
    sheets = (
        *(stream_table(summary), rejected_table(summary)),
        *(serving_table(summary), processes_table(summary)),
    )
    return f'<section class="grid">{cards(sheets)}</section>'


def cards(sheets: Iterable[Sheet]) -> str:
    """Tables in frames; one without rows is left out."""
    return "\n".join(f'<div class="card">{sheet.html()}</div>' for sheet in sheets if sheet.rows)


def configuration(folder: RunFolder) -> str:
    """The run's configuration, folded."""
    if not folder.config.exists():
        return ""
    text = html.escape(folder.config.read_text(encoding="utf-8"))
    return f'<details class="card"><summary>Configuration</summary><pre>{text}</pre></details>'
