"""Rates by engine as bars of an SVG: those figures that say how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.das.figures import Figure
from benchmarks.picture import FAINT, text
from flows.report.palette import CURVES

WIDTH, ROW, TOP, LEFT, RIGHT = 900, 26, 56, 240, 120
BAR = 16
OURS = "exfm"


def picture(figures: Sequence[Figure]) -> str:
    """An SVG: a group of bars for each group of `drawn_as`, all of one scale."""
    drawn = [f for f in figures if f.drawn_as and f.value is not None]
    groups: dict[str, list[Figure]] = {}
    for figure in drawn:
        groups.setdefault(figure.drawn_as.partition(": ")[0], []).append(figure)
    highest = max((f.value or 0.0 for f in drawn), default=1.0)
    height = TOP + sum((len(rows) + 1.4) * ROW for rows in groups.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        "<title>Events joined a second, by engine</title>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        text(24, 26, "Input events joined a second, more is better", weight=600, size=14),
    ]
    y = float(TOP)
    for name, rows in groups.items():
        parts.append(text(24, y + BAR - 3, name, weight=600))
        y += ROW
        for figure in sorted(rows, key=lambda f: -(f.value or 0.0)):
            parts += bar(figure, y, highest)
            y += ROW
        y += 0.4 * ROW
    return "\n".join([*parts, "</svg>", ""])


def bar(figure: Figure, y: float, highest: float) -> Iterator[str]:
    """Label, bar and rate of one engine."""
    label = figure.drawn_as.partition(": ")[2]
    value = figure.value or 0.0
    width = max(1.0, (WIDTH - LEFT - RIGHT) * value / highest)
    ours = label.startswith(OURS)
    fill = CURVES["student"] if ours else "#94a3b8"
    yield text(LEFT - 10, y + BAR - 3, label, anchor="end", weight=600 if ours else 400)
    yield f'<rect x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" rx="2" fill="{fill}"/>'
    yield text(LEFT + width + 8, y + BAR - 3, f"{value:,.0f}", fill=FAINT)
