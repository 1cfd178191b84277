"""The run as it goes: tables on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.figures import event_now_s, freshness_s, lag, load_report, of
from flows.launch import Launched
from flows.scrape import Sample, rate
from flows.summary import number, percent

LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.5


class LiveView:
    """Shows a run; a context manager. `tick` may be called as often as one likes."""

    def __init__(self, console: Console, launched: Launched, total_s: float | None = None) -> None:
        """Nothing is shown yet.

        Args:
            console: where to.
            launched: what to show.
            total_s: expected length; None shows no bar.
        """
        self._console = console
        self._launched = launched
        self._total_s = total_s
        self._started_s = time.monotonic()
        self._next_s = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(None), TimeElapsedColumn(), console=console
        )
        self._task = self._bar.add_task("starting", total=total_s)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def phase(self, text: str) -> None:
        """Say what the run does now."""
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(f"{self._elapsed_s():4.0f} s  {text}")

    def tick(self) -> None:
        """Draw, if it is time to."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        if self._console.is_terminal:
            self._next_s = now_s + DRAW_EVERY_S
            self._bar.update(self._task, completed=self._elapsed_s())
            self._live.update(Group(self._bar, panels(self._launched)), refresh=True)
        else:
            self._next_s = now_s + LINE_EVERY_S
            self._console.print(f"{self._elapsed_s():4.0f} s  {line(self._launched)}")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


def line(launched: Launched) -> str:
    """The run on one line."""
    scraper, newest = launched.scraper, launched.scraper.newest
    gains = [
        f"{have['model']}/{have['task']} {percent(value, signed=True)}"
        for have, value in newest.each("exfm_train_ne_gain_ratio")
        if have["model"] != "fm"
    ]
    load = load_report(launched.folder)
    return ", ".join(
        [
            f"{scraper.rate('exfm_das_windows_closed_total', 10.0):,.0f} examples/s",
            f"lag {sum(lag(newest).values()):,.0f}",
            f"pending {newest.total('exfm_das_pending_impressions'):,.0f}",
            f"requests {load.get('requests', 0)} ({load.get('failed', 0)} failed)",
            "gain " + (" ".join(gains) or "-"),
        ]
    )


def panels(launched: Launched) -> RenderableType:
    """The run as tables."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(processes_table(launched), flow_table(launched))
    return Group(grid, models_table(launched))


def processes_table(launched: Launched) -> Table:
    """State of each process."""
    table = Table(title="Processes")
    for head in ("process", "state", "restarts"):
        table.add_column(head, justify="right" if head == "restarts" else "left")
    for name, (state, restarts) in launched.supervisor.states().items():
        table.add_row(name, state, str(restarts))
    return table


def flow_table(launched: Launched) -> Table:
    """Rates and queues."""
    scraper, newest = launched.scraper, launched.scraper.newest
    table = Table(title="Flow", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    topics = launched.settings.topics
    das = [of(sample, "das") for sample in scraper.samples[-10:]]
    for topic in (topics.impressions.name, topics.labels.name):
        table.add_row(f"{topic}/s", number(rate_of(das, topic), 0))
    table.add_row("examples/s", number(scraper.rate("exfm_das_windows_closed_total"), 0))
    table.add_row("pending impressions", number(newest.total("exfm_das_pending_impressions"), 0))
    for topic, messages in lag(newest).items():
        table.add_row(f"lag of {topic}", number(messages, 0))
    table.add_row("dead letters", number(newest.total("exfm_dead_letters_total"), 0))
    table.add_row("FM version age", age(newest.largest("exfm_fm_version_age_seconds")))
    load = load_report(launched.folder)
    table.add_row("requests (failed)", f"{load.get('requests', 0)} ({load.get('failed', 0)})")
    latency = f"{number(load.get('p50_ms'), 1)} / {number(load.get('p99_ms'), 1)} ms"
    table.add_row("latency p50 / p99", latency)
    return table


def rate_of(samples: list[Sample], topic: str) -> float:
    """Events a second of a topic over a short series."""
    return rate(samples, "exfm_source_events_total", topic=topic)


def models_table(launched: Launched) -> Table:
    """Quality, freshness and version of each model and task, over the newest intervals."""
    newest = launched.scraper.newest
    topic = launched.settings.topics.impressions.name
    fresh, now_s = freshness_s(newest, topic), event_now_s(newest, topic)
    coverage = newest.by("model", "exfm_train_fm_coverage_ratio")
    versions = newest.by("model", "exfm_serve_version_seconds")
    swaps = newest.by("model", "exfm_serve_swaps_total")
    table = Table(title="Models, most recent intervals")
    heads = ("NE", "shadow", "FM", "gain", "transfer", "covered", "fresh", "version age", "swaps")
    table.add_column("model")
    table.add_column("task")
    for head in heads:
        table.add_column(head, justify="right")
    for have, ne in newest.each("exfm_train_ne_ratio"):
        model = have["model"]

        def gauge(name: str, have: dict[str, str] = have) -> float | None:
            return newest.largest(f"exfm_train_{name}_ratio", **have)

        version = versions.get(model)
        table.add_row(
            *(model, have["task"], number(ne), number(gauge("shadow_ne")), number(gauge("fm_ne"))),
            percent(newest.largest("exfm_train_ne_gain_ratio", **have), signed=True),
            percent(newest.largest("exfm_train_transfer_ratio", **have)),
            percent(coverage.get(model)),
            age(fresh.get(model)),
            age(now_s - version if now_s and version else None),
            number(swaps.get(model), 0),
        )
    return table


def age(seconds: float | None) -> str:
    """Seconds for people."""
    return "-" if seconds is None else f"{seconds:.1f} s"
