"""Draws a run's NE curves, a panel a student: `python -m benchmarks.picture runs/NAME OUT.svg`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from flows.report.figures import quality_documents
from flows.report.ne_curve import Curve, Document, EventTime, curves
from flows.report.palette import CURVES
from flows.report.summary import TEACHER
from flows.run_folder import RunFolder
from flows.wording import percent
from models.durable import write_atomically

WIDTH, HEIGHT = 900, 300
TOP, BOTTOM, LEFT, GAP = 70, 46, 46, 18
INK, FAINT, GRID = "#0f172a", "#64748b", "#e2e8f0"
NUM_TICKS = 5
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A student's curves on its first task, where they stand, and the scales that all share."""

    document: Document
    axis: EventTime
    left: float
    right: float
    lowest: float
    highest: float

    @property
    def task(self) -> str:
        """What is predicted."""
        return str(self.document["tasks"][0])

    def x(self, time: float) -> float:
        """Place of a time since the stream's beginning."""
        return self.left + (self.right - self.left) * time / self.axis.length

    def y(self, ne: float) -> float:
        """Place of an NE."""
        share = (ne - self.lowest) / (self.highest - self.lowest)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def picture(documents: Mapping[str, Document]) -> str:
    """An SVG of all students; nothing in it is drawn at a size of its own."""
    students = [document for name, document in documents.items() if name != TEACHER]
    axis = EventTime(documents.values())
    drawn = [curves(document, document["tasks"][0]) for document in students]
    values = [ne for by_name in drawn for points in by_name.values() for _, ne in points]
    ticks = ticks_of(min(values), max(values))
    width = (WIDTH - LEFT - GAP * len(students)) / len(students)
    panels = [
        Panel(
            document=document,
            axis=axis,
            left=LEFT + i * (width + GAP),
            right=LEFT + i * (width + GAP) + width,
            lowest=ticks[0],
            highest=ticks[-1],
        )
        for i, document in enumerate(students)
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        "<title>Normalised entropy of each student over the stream</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *legend(),
    ]
    for panel, by_name in zip(panels, drawn, strict=True):
        parts += [*frame(panel, ticks, with_labels=panel is panels[0]), *lines(panel, by_name)]
    return "\n".join([*parts, "</svg>", ""])


def ticks_of(lowest: float, highest: float) -> list[float]:
    """Round numbers that enclose a range."""
    rough = max(highest - lowest, 1e-6) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in STEPS if power * step >= rough)
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return [step * i for i in range(first, last + 1)]


def legend() -> Iterator[str]:
    """What is drawn, and the colours."""
    yield text(LEFT, 22, "Normalised entropy over the stream, lower is better", weight=600, size=14)
    right = float(WIDTH - GAP)
    for name, colour in reversed(CURVES.items()):
        right -= 8.0 * len(name)
        yield text(right, 22, name, fill=FAINT)
        yield f'<path d="M{right - 24:.1f} 18h18" stroke="{colour}" stroke-width="2.5"/>'
        right -= 40


def frame(panel: Panel, ticks: Sequence[float], *, with_labels: bool) -> Iterator[str]:
    """Title, gain, grid and scales."""
    name = f"{panel.document['model']}, {panel.task}"
    gain = panel.document["totals"][panel.task]["gain"]
    yield text(panel.left, TOP - 14, name, weight=600)
    if gain is not None:
        words = f"gain {percent(gain, signed=True)}"
        fill = CURVES["student"] if gain > 0 else FAINT
        yield text(panel.right, TOP - 14, words, weight=600, anchor="end", fill=fill)
    for tick in ticks:
        y = panel.y(tick)
        yield f'<path d="M{panel.left:.1f} {y:.1f}H{panel.right:.1f}" stroke="{GRID}"/>'
        if with_labels:
            yield text(panel.left - 6, y + 4, f"{tick:.2f}", anchor="end", fill=FAINT)
    for time in ticks_of(0, panel.axis.length):
        if time <= panel.axis.length:
            where = panel.x(time)
            yield text(where, HEIGHT - BOTTOM + 17, f"{time:g}", anchor="middle", fill=FAINT)
    middle = (panel.left + panel.right) / 2
    words = f"event time, {panel.axis.unit}"
    yield text(middle, HEIGHT - BOTTOM + 34, words, anchor="middle", fill=FAINT)


def lines(panel: Panel, by_name: Mapping[str, Curve]) -> Iterator[str]:
    """The curves, the student's on top."""
    for name in reversed(list(by_name)):
        points = by_name[name]
        times = panel.axis.of(time_ms for time_ms, _ in points)
        places = " ".join(
            f"{panel.x(time):.1f},{panel.y(ne):.1f}"
            for time, (_, ne) in zip(times, points, strict=True)
        )
        yield (
            f'<polyline points="{places}" fill="none" stroke="{CURVES[name]}"'
            ' stroke-width="2" stroke-linejoin="round"/>'
        )


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 12,
    weight: int = 400,
    anchor: str = "start",
    fill: str = INK,
) -> str:
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'
    )


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="the SVG to write")
    arguments = parser.parse_args()
    documents = quality_documents(RunFolder(arguments.run))
    if not set(documents) - {TEACHER}:
        parser.error(f"{arguments.run} must hold quality/STUDENT.json, found none")
    write_atomically(arguments.out, picture(documents).encode())


if __name__ == "__main__":
    main()
