"""The run as it goes: panels on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flows.report.figures import lag, load_report
from flows.run.launch import Launched
from flows.run.live_panels import Frame
from flows.wording import percent

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
            self._live.update(Frame(self._launched, self._bar), refresh=True)
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
