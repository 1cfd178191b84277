"""One compiled pass over lines of plain JSON objects, whose values go straight to columns.

Plain is what writers of events write: an object of flat fields a line, spaces between its parts or
none. The pass leaves out lines that are not, be they wrong or just rare; a full parser then
decides. What it does read, it reads as JSON (RFC 8259) says: no number may be quoted, begin with a
0 or be cut to fit, and no field of the schema may come twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flows.events import json_values, words
from flows.events.compiling import Array, compiled, kept
from flows.events.json_values import (
    COMMA,
    MASKS,
    NO,
    QUOTE,
    anything,
    float32,
    float64,
    integer,
    integer_list,
    null,
    spaces,
    string,
    string_list,
    string_without_escapes,
)
from flows.events.words import PADDING, Word, load, start

TEXT, INTEGER, FLOAT, DOUBLE, INTEGERS, TEXTS = range(6)
"""Kinds of columns: string, signed integers, float32, float64, lists of int64 and of string."""
ABSENT, NULL, VALUE = range(3)
"""What a row holds in a column."""
_NEWLINE, _COLON, _OPEN, _CLOSE, _N = b"\n:{}n"


class Plan(NamedTuple):
    """What is looked for, in C columns."""

    keys: Array
    """Names of all columns as UTF-8, each with the quote behind it, and PADDING; uint8."""
    key_begin: Array
    """Where each begins, and the end of the last, int64 [C + 1]."""
    kind: Array
    """int64 [C]."""
    slot: Array
    """The row of `integers`, `floats`, `doubles`, `text` or `items`, int64 [C]."""
    text_slot: Array
    """The row of `text` for the strings of a list, int64 [C]."""
    least: Array
    """Smallest integer, int64 [C]."""
    most: Array
    """Largest integer, int64 [C]."""
    likely: Array
    """The column that last followed one, and last began an object; C is none; int64 [C + 1]."""


class Columns(NamedTuple):
    """What is found in N lines; what is not said to be otherwise is 0 at first."""

    is_plain: Array
    """Which lines are; of others nothing is found, uint8 [N]."""
    state: Array
    """ABSENT, NULL or VALUE, uint8 [C, N]."""
    integers: Array
    """int64 [I, N]."""
    floats: Array
    """float32 [F, N]."""
    doubles: Array
    """float64 [D, N]."""
    items_end: Array
    """Where the items of a row end, int32 [L, N + 1]."""
    text_end: Array
    """Where the string of a row ends, int32 [T, N + 1]; of no use for lists."""
    items_now: Array
    """Where in all of `items` the next of a column goes: at first to its row, int64 [L]."""
    text_now: Array
    """Where in all of `text` the next of a column goes: at first to its row, int64 [T]."""
    items: Array
    """All items of a column of lists behind each other, int64 [L, bytes of the lines]: integers,
    or where in all of `text` strings end. Anything at first."""
    text: Array
    """All strings of a column behind each other, uint8 [T, bytes of the lines]. Anything
    at first."""


class _Pointers(NamedTuple):
    """Of the arrays above, whose rows follow each other, as the functions below take them."""

    keys: Any
    key_begin: Any
    likely: Any
    kind: Any
    slot: Any
    text_slot: Any
    least: Any
    most: Any
    state: Any
    integers: Any
    floats: Any
    doubles: Any
    items_now: Any
    text_now: Any
    items: Any
    text: Any
    num_columns: int
    num_rows: int


@kept(json_values, words)
def scan(lines: Array, plan: Plan, columns: Columns) -> bool:
    """Read lines.

    Args:
        lines: UTF-8 as uint8: a newline, the lines, each ended by a newline, and PADDING.
        plan: the columns.
        columns: is filled.

    Returns:
        Whether there were N lines; if not, `columns` is of no use.
    """
    data = start(lines)
    num_columns, num_rows = columns.state.shape
    to = _Pointers(
        start(plan.keys),
        start(plan.key_begin),
        start(plan.likely),
        start(plan.kind),
        start(plan.slot),
        start(plan.text_slot),
        start(plan.least),
        start(plan.most),
        start(columns.state),
        start(columns.integers),
        start(columns.floats),
        start(columns.doubles),
        start(columns.items_now),
        start(columns.text_now),
        start(columns.items),
        start(columns.text),
        num_columns,
        num_rows,
    )
    at, row = 1, 0
    end = len(lines) - len(PADDING)
    while at < end:
        if row == num_rows:
            return False
        behind = _line(data, at, row, to)
        columns.is_plain[row] = behind != NO
        if behind == NO:
            _forget(columns, row, len(lines))
            behind = _next_line(data, at)
        at = behind
        row += 1
        for slot in range(len(columns.items_now)):
            columns.items_end[slot, row] = columns.items_now[slot] - slot * len(lines)
        for slot in range(len(columns.text_now)):
            columns.text_end[slot, row] = columns.text_now[slot] - slot * len(lines)
    has_all: bool = row == num_rows
    return has_all


@compiled
def _forget(columns: Columns, row: int, room: int) -> None:
    """What was found in a line."""
    columns.state[:, row] = ABSENT
    columns.integers[:, row] = 0
    columns.floats[:, row] = 0
    columns.doubles[:, row] = 0
    for slot in range(len(columns.items_now)):
        columns.items_now[slot] = columns.items_end[slot, row] + slot * room
    for slot in range(len(columns.text_now)):
        columns.text_now[slot] = columns.text_end[slot, row] + slot * room


@compiled
def _next_line(data: Any, at: int) -> int:
    while data[at] != _NEWLINE:
        at += 1
    return at + 1


@compiled
def _line(data: Any, at: int, row: int, to: _Pointers) -> int:
    """Behind an object and its newline."""
    if data[at] != _OPEN:
        return NO
    at = spaces(data, at + 1)
    column = to.num_columns
    more = data[at] != _CLOSE
    if not more:
        at += 1
    while more:
        if data[at] != QUOTE:
            return NO
        found = _key(data, at + 1, to, to.likely[column])
        if found == to.num_columns:
            at = string_without_escapes(data, at)
        else:
            to.likely[column] = column = found
            at += 1 + to.key_begin[column + 1] - to.key_begin[column]
        at = spaces(data, at)
        if data[at] != _COLON:
            return NO
        at = spaces(data, at + 1)
        at = anything(data, at) if found == to.num_columns else _value(data, at, column, row, to)
        at = spaces(data, at)
        if data[at] != COMMA and data[at] != _CLOSE:
            return NO
        more = data[at] == COMMA
        at += 1
        if more:
            at = spaces(data, at)
    return at + 1 if data[at] == _NEWLINE else NO


@compiled
def _value(data: Any, at: int, column: int, row: int, to: _Pointers) -> int:
    """Behind a value, which is put into its column, unless that has one already."""
    state = column * to.num_rows + row
    if to.state[state] != ABSENT:
        return NO
    if data[at] == _N:
        to.state[state] = NULL
        return null(data, at)
    to.state[state] = VALUE
    kind, slot, text_slot = to.kind[column], to.slot[column], to.text_slot[column]
    place = slot * to.num_rows + row
    if kind == TEXT:
        at, to.text_now[slot] = string(data, at, to.text, to.text_now[slot])
    elif kind == INTEGER:
        at, value = integer(data, at)
        if value < to.least[column] or value > to.most[column]:
            return NO
        to.integers[place] = value
    elif kind == FLOAT:
        at, to.floats[place] = float32(data, at)
    elif kind == DOUBLE:
        at, to.doubles[place] = float64(data, at)
    elif kind == INTEGERS:
        at, to.items_now[slot] = integer_list(data, at, to.items, to.items_now[slot])
    else:
        at, to.items_now[slot], to.text_now[text_slot] = string_list(
            data, at, to.items, to.items_now[slot], to.text, to.text_now[text_slot]
        )
    return at


@compiled
def _key(data: Any, at: int, to: _Pointers, likely: int) -> int:
    """The column whose name and a quote stand there, the number of columns if it is none's."""
    if likely < to.num_columns and _is_key(data, at, to, likely):
        return likely
    for column in range(to.num_columns):
        if _is_key(data, at, to, column):
            return column
    return to.num_columns


@compiled
def _is_key(data: Any, at: int, to: _Pointers, column: int) -> bool:
    begin, end = to.key_begin[column], to.key_begin[column + 1]
    while end - begin >= 8:
        if load(data, at) != load(to.keys, begin):
            return False
        at += 8
        begin += 8
    differ: Word = (load(data, at) ^ load(to.keys, begin)) & MASKS[end - begin]
    return bool(differ == 0)
