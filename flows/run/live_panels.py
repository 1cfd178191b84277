"""What the live view shows of a run: its models, its server, its queues, its processes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.report.figures import (
    event_now_s,
    freshness_s,
    keeps_wall_time,
    lag,
    load_report,
    of,
    percentile_s,
)
from flows.report.scrape import Sample, rate
from flows.report.sheet import Cell, Column, Sheet, change
from flows.report.summary import TEACHER
from flows.run.launch import Launched
from flows.wording import age, clock, number, percent

RECENT = 30
"""Samples, one a second, that percentiles of the server are taken over."""
LATENCY = "exfm_serve_request_seconds"
STATES = {"running": "green", "finished": "blue", "stopped": "blue"}
"""Colour by state; another is a matter of concern."""
BORDER = "bright_black"
WIDE = 110
"""Columns from which the queues stand beside the server."""
MAX_COLUMNS = 4
VALUE_WIDTH = 6
"""At least, so that little moves while values grow."""

Entry = tuple[str, str]


def framed(title: str, content: RenderableType) -> Panel:
    """A panel as wide as there is room."""
    return Panel(
        content, title=f"[bold default]{title}[/]", title_align="left", border_style=BORDER
    )


def models_sheet(launched: Launched, *, with_teacher: bool = True) -> Sheet:
    """Quality of each model and task over the newest intervals."""
    newest, settings = launched.scraper.newest, launched.settings
    tasks = {student.name: student.tasks for student in settings.students}
    if with_teacher:
        tasks[TEACHER] = tuple(task.name for task in settings.tasks)
    return Sheet(
        columns=[
            *(Column(head="model", left=True), Column(head="task", left=True)),
            *(Column(head="NE"), Column(head="shadow"), Column(head="FM")),
            *(Column(head="gain"), Column(head="transfer"), Column(head="covered", drop=2)),
            Column(head="calibr.", drop=1),
        ],
        rows=[quality_row(newest, model, task) for model in tasks for task in tasks[model]],
    )


def quality_row(newest: Sample, model: str, task: str) -> list[Cell]:
    """Quality of a model and task; the teacher's one NE stands under FM."""

    def gauge(name: str) -> float | None:
        return newest.largest(f"exfm_train_{name}_ratio", model=model, task=task)

    is_student, gain = model != TEACHER, gauge("ne_gain")
    coverage = newest.by("model", "exfm_train_fm_coverage_ratio").get(model)
    return [
        *(Cell(model), Cell(task)),
        Cell(number(gauge("ne") if is_student else None)),
        Cell(number(gauge("shadow_ne"))),
        Cell(number(gauge("fm_ne" if is_student else "ne"))),
        change(percent(gain, signed=True), gain),
        Cell(percent(gauge("transfer"))),
        Cell(percent(coverage if is_student else None)),
        Cell(number(gauge("calibration"), 3)),
    ]


def serving_sheet(launched: Launched) -> Sheet:
    """Version, age and latency of each student that serves."""
    samples, topic = launched.scraper.samples, launched.settings.topics.impressions.name
    newest = launched.scraper.newest
    fresh = freshness_s(newest, topic) if keeps_wall_time(samples, topic) else {}
    versions = newest.by("model", "exfm_serve_version_seconds")
    swaps = newest.by("model", "exfm_serve_swaps_total")
    rows = []
    for model in [student.name for student in launched.settings.students]:
        rows.append(
            [
                *(Cell(model), Cell(clock(versions.get(model))), Cell(age(fresh.get(model)))),
                Cell(number(swaps.get(model), 0)),
                *(Cell(latency_ms(samples, share, model=model)) for share in (0.5, 0.99)),
            ]
        )
    heads = ("version", "fresh", "swaps", "p50 ms", "p99 ms")
    return Sheet(
        columns=[Column(head="model", left=True), *(Column(head=head) for head in heads)],
        rows=rows,
    )


def latency_ms(samples: Sequence[Sample], share: float, **labels: str) -> str:
    """A percentile of the server's recent latency."""
    if len(samples) < 2:
        return "-"
    earlier = samples[max(0, len(samples) - RECENT)]
    found_s = percentile_s(LATENCY, share, earlier, samples[-1], **labels)
    return "-" if found_s is None else number(1000 * found_s, 1)


def flow_entries(launched: Launched) -> list[Entry]:
    """Rates, queues and the load, by name."""
    scraper, newest = launched.scraper, launched.scraper.newest
    topics = launched.settings.topics
    das = [of(sample, "das") for sample in scraper.samples[-10:]]
    read = "exfm_source_events_total"
    load = load_report(launched.folder)
    coverage = newest.by("model", "exfm_train_fm_coverage_ratio").values()
    event_s = event_now_s(newest, topics.impressions.name)
    has_version = bool(newest.largest("exfm_fm_version_seconds"))
    return [
        ("event time", clock(event_s)),
        *(
            (f"{topic}/s", number(rate(das, read, topic=topic), 0))
            for topic in (topics.impressions.name, topics.labels.name)
        ),
        ("joined/s", number(scraper.rate("exfm_das_windows_closed_total"), 0)),
        ("applied/s", number(scraper.rate("exfm_train_examples_total"), 0)),
        ("pending", number(newest.total("exfm_das_pending_impressions"), 0)),
        *((f"lag {topic}", number(messages, 0)) for topic, messages in sorted(lag(newest).items())),
        ("FM covered", percent(min(coverage, default=None))),
        ("FM age", age(newest.largest("exfm_fm_version_age_seconds") if has_version else None)),
        ("dead letters", number(newest.total("exfm_dead_letters_total"), 0)),
        ("requests", number(load.get("requests", 0), 0)),
        ("failed", number(load.get("failed", 0), 0)),
        ("p50 ms", number(load.get("p50_ms"), 1)),
        ("p99 ms", number(load.get("p99_ms"), 1)),
    ]


class FlowGrid:
    """Entries in as many columns as there is room for, filled downwards."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = in_columns(self._entries, 1)
        for num in range(2, MAX_COLUMNS + 1):
            if needed(self._entries, num) <= options.max_width:
                columns = in_columns(self._entries, num)
        grid = Table.grid(padding=(0, 1), expand=True)
        for _ in columns:
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(justify="right", no_wrap=True, min_width=VALUE_WIDTH)
            grid.add_column(ratio=1)
        for line in zip_longest(*columns, fillvalue=("", "")):
            grid.add_row(*(text for entry in line for text in (*entry, "")))
        yield grid


def needed(entries: Sequence[Entry], num: int) -> int:
    """Characters that `num` columns of entries need."""
    return sum(
        max(len(name) for name, _ in column)
        + max(VALUE_WIDTH, *(len(value) for _, value in column))
        + 4
        for column in in_columns(entries, num)
    )


def in_columns(entries: Sequence[Entry], num: int) -> list[Sequence[Entry]]:
    """Entries in at most `num` columns of about the same length."""
    length = -(-len(entries) // num)
    return [entries[i : i + length] for i in range(0, len(entries), length)]


def processes_dots(launched: Launched) -> Columns:
    """A dot in the colour of its state for each process; restarts where there were any."""
    found = []
    for name, (state, restarts) in launched.supervisor.states().items():
        text = Text.assemble(("● ", STATES.get(state, "bold red")), name)
        if state not in STATES:
            text.append(f" {state}", "bold red")
        if restarts:
            text.append(f" +{restarts}", "yellow")
        found.append(text)
    return Columns(found, padding=(0, 2))


class Frame:
    """The whole view, as rich as the terminal's height allows.

    Args:
        launched: the run.
        bar: says what it does now.
    """

    def __init__(self, launched: Launched, bar: RenderableType) -> None:
        self._launched = launched
        self._bar = bar

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        views = [self.roomy(width), self.dense(), self.dense(teacher=False)]
        for view in views:
            lines = console.render_lines(view, options.update(height=None), pad=False)
            if len(lines) <= console.height:
                break
        yield view

    def roomy(self, width: int) -> RenderableType:
        """Everything in frames; queues beside the server where there is room."""
        title = f"exfm · {escape(self._launched.folder.root.name)}"
        head = framed(title, Group(self._bar, processes_dots(self._launched)))
        models = framed("Models, most recent intervals", models_sheet(self._launched))
        serving = framed("Serving", serving_sheet(self._launched))
        if width < WIDE:
            return Group(head, models, serving, self.flow())
        row = Table.grid(expand=True)
        row.add_column()
        row.add_column(ratio=1)
        row.add_row(serving, self.flow())
        return Group(head, models, row)

    def dense(self, *, teacher: bool = True) -> RenderableType:
        """For a low terminal: models first, the rest below as far as there is room."""
        models = models_sheet(self._launched, with_teacher=teacher)
        serving = serving_sheet(self._launched)
        dots = processes_dots(self._launched)
        return Group(self._bar, framed("Models", models), serving, self.flow(), dots)

    def flow(self) -> Panel:
        """Rates and queues, framed."""
        return framed("Flow", FlowGrid(flow_entries(self._launched)))
