"""A table that is defined once and shown twice: on a terminal of any width, and as HTML."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Tone = Literal["plain", "good", "bad", "dim"]
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "bold red", "dim": "dim"}
UNBOUNDED = 10_000
"""Columns of a terminal on which nothing needs to be dropped."""
VISIBLE = 0.00005
"""A smaller difference reads as zero."""


class Cell(NamedTuple):
    """What stands in a row and column."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column."""

    head: str = ""
    left: bool = False
    """Words, which may wrap; numbers stand right and never do."""
    drop: int = 0
    """Place in the order in which a narrow terminal drops columns; 0: it keeps this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table; what rich prints, and what `html` returns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.fitted(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.fitted(console, options))

    def fitted(self, console: Console, options: ConsoleOptions) -> Table:
        """The table with as many columns as the terminal has room for."""
        order = sorted({column.drop for column in self.columns} - {0})
        table = self.without(())
        for num in range(1, len(order) + 1):
            wide = options.update(width=UNBOUNDED)
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                break
            table = self.without(order[:num])
        return table

    def without(self, dropped: Collection[int]) -> Table:
        """The table without the columns of these places."""
        kept = [i for i, column in enumerate(self.columns) if column.drop not in dropped]
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            show_header=any(column.head for column in self.columns),
            header_style="bold",
            title=self.title or None,
            title_style="bold",
            title_justify="left",
        )
        for i in kept:
            column = self.columns[i]
            justify: Literal["left", "right"] = "left" if column.left else "right"
            table.add_column(column.head, justify=justify, no_wrap=not column.left)
        for row in self.rows:
            table.add_row(*(Text(row[i].text, STYLES[toned(row[i])]) for i in kept))
        return table

    def html(self) -> str:
        """The whole table; classes are `left` and the tones."""
        head = "".join(
            f"<th{' class=left' if column.left else ''}>{html.escape(column.head)}</th>"
            for column in self.columns
        )
        body = "\n".join(
            f"<tr>{''.join(html_cell(*pair) for pair in zip(row, self.columns, strict=True))}</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        named = any(column.head for column in self.columns)
        thead = f"<thead><tr>{head}</tr></thead>" if named else ""
        return f"<table>{caption}{thead}<tbody>\n{body}\n</tbody></table>"


def html_cell(cell: Cell, column: Column) -> str:
    """One `td`."""
    classes = " ".join([*(["left"] if column.left else []), toned(cell)])
    return f'<td class="{classes}">{html.escape(cell.text)}</td>'


def toned(cell: Cell) -> Tone:
    """A dash is dim, whatever was said."""
    return "dim" if cell.text == "-" else cell.tone


def change(text: str, value: float | None) -> Cell:
    """A difference, better above zero, in a colour if it shows."""
    if value is None or abs(value) < VISIBLE:
        return Cell(text)
    return Cell(text, "good" if value > 0 else "bad")
