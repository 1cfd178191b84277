"""Plain JSON lines to Arrow columns, several times as fast as a full parser."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from flows.events import json_scan
from flows.events.compiling import Array
from flows.events.json_scan import (
    DOUBLE,
    FLOAT,
    INTEGER,
    INTEGERS,
    TEXT,
    TEXTS,
    VALUE,
    Columns,
    Plan,
)
from flows.events.words import PADDING

BEFORE = b"\n"
MOST_BYTES = 2**31 - 1
"""Ends of texts are int32."""
MOST_SCRATCH = 2**30
"""Bytes; lines that could need more are not read."""
KEPT_SCRATCH = 2**26
"""Bytes; more are not kept for the next lines."""
_ROOMS: list[Array] = []


class PlainJson:
    """Reads lines of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        """Prepare for a schema; the first of a process compiles, which takes seconds once.

        Args:
            schema: names and types; nullability is not looked at.
        """
        self._schema = schema
        self._plan = _plan(schema)
        self.read(BEFORE + PADDING, 0)

    def read(self, framed: bytes, num: int) -> tuple[pa.Table, Array] | None:
        """A row for each line.

        Args:
            framed: BEFORE, lines in UTF-8, each ended by a newline, and PADDING.
            num: lines.

        Returns:
            The rows, and which lines are plain, bool [N]: the others are rows of nulls. Fields
            outside of the schema are ignored, absent ones null. None if the number of lines is
            another, if they are too long, or if the schema has other columns than events have.
        """
        if self._plan is None or len(framed) > MOST_BYTES:
            return None
        kinds = Counter(self._plan.kind.tolist())
        texts, lists = kinds[TEXT] + kinds[TEXTS], kinds[INTEGERS] + kinds[TEXTS]
        num_bytes = len(framed) * (texts + 8 * lists)
        if num_bytes > MOST_SCRATCH:
            return None
        with _scratch(num_bytes) as scratch:
            columns = Columns(
                is_plain=np.zeros(num, np.uint8),
                state=np.zeros((len(self._schema), num), np.uint8),
                integers=np.zeros((kinds[INTEGER], num), np.int64),
                floats=np.zeros((kinds[FLOAT], num), np.float32),
                doubles=np.zeros((kinds[DOUBLE], num), np.float64),
                items_now=np.arange(lists) * len(framed),
                items=scratch[: 8 * lists * len(framed)].view(np.int64).reshape(lists, len(framed)),
                items_end=np.zeros((lists, num + 1), np.int32),
                text_now=np.arange(texts) * len(framed),
                text=scratch[8 * lists * len(framed) :].reshape(texts, len(framed)),
                text_end=np.zeros((texts, num + 1), np.int32),
            )
            if not json_scan.scan(np.frombuffer(framed, np.uint8), self._plan, columns):
                return None
            arrays = [
                _array(columns, self._plan, column, field.type)
                for column, field in enumerate(self._schema)
            ]
        return pa.Table.from_arrays(arrays, schema=self._schema), columns.is_plain != 0


@contextmanager
def _scratch(num_bytes: int) -> Iterator[Array]:
    """Room that is used again: pages that are new to the process cost as much as reading.

    Threads have a room each while they use it.
    """
    try:
        room = _ROOMS.pop()
    except IndexError:
        room = np.empty(0, np.uint8)
    if len(room) < num_bytes:
        room = np.empty(num_bytes, np.uint8)
    try:
        yield room[:num_bytes]
    finally:
        if len(room) <= KEPT_SCRATCH:
            _ROOMS.append(room)


def _plan(schema: pa.Schema) -> Plan | None:
    """None if a column's type is not known here, or its name is not written in JSON as it is."""
    names = [f'{name}"'.encode() for name in schema.names]
    kinds = [_kind(kind) for kind in schema.types]
    if not names or len(set(names)) < len(names) or None in kinds:
        return None
    if any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in schema.names):
        return None
    slots = [kinds[:column].count(kind) for column, kind in enumerate(kinds)]
    list_slots = [slot + kinds.count(INTEGERS) for slot in slots]
    bits = [kind.bit_width if pa.types.is_integer(kind) else 64 for kind in schema.types]
    return Plan(
        keys=np.frombuffer(b"".join(names) + PADDING, np.uint8),
        key_begin=np.cumsum([0, *map(len, names)]),
        kind=np.array(kinds),
        slot=np.where(np.array(kinds) == TEXTS, list_slots, slots),
        text_slot=np.array([slot + kinds.count(TEXT) for slot in slots]),
        least=np.array([-(1 << (num - 1)) for num in bits]),
        most=np.array([(1 << (num - 1)) - 1 for num in bits]),
        likely=np.append(np.arange(1, len(names) + 1), 0),
    )


def _kind(kind: pa.DataType) -> int | None:
    if pa.types.is_signed_integer(kind):
        return INTEGER
    kinds = {
        pa.string(): TEXT,
        pa.float32(): FLOAT,
        pa.float64(): DOUBLE,
        pa.list_(pa.int64()): INTEGERS,
        pa.list_(pa.string()): TEXTS,
    }
    return kinds.get(kind)


def _array(columns: Columns, plan: Plan, column: int, kind: pa.DataType) -> pa.Array:
    slot, text_slot = plan.slot[column], plan.text_slot[column]
    valid = _bitmap(columns.state[column] == VALUE)
    match plan.kind[column]:
        case json_scan.TEXT:
            return _texts(columns.text[slot], columns.text_end[slot], valid)
        case json_scan.INTEGERS:
            end_N = columns.items_end[slot]
            return _lists(_numbers(columns.items[slot, : end_N[-1]].copy(), None), end_N, valid)
        case json_scan.TEXTS:
            end_N = columns.items_end[slot]
            text = columns.text[text_slot]
            item_end = np.append(0, columns.items[slot, : end_N[-1]] - len(text) * text_slot)
            return _lists(_texts(text, item_end.astype(np.int32), None), end_N, valid)
        case json_scan.INTEGER:
            array = _numbers(columns.integers[slot], valid)
            return array if kind == array.type else array.cast(kind)
        case json_scan.FLOAT:
            return _numbers(columns.floats[slot], valid)
        case _:
            return _numbers(columns.doubles[slot], valid)


def _numbers(values_N: Array, valid: pa.Buffer | None) -> pa.Array:
    kind = pa.from_numpy_dtype(values_N.dtype)
    return pa.Array.from_buffers(kind, len(values_N), [valid, pa.py_buffer(values_N)])


def _bitmap(valid_N: Array) -> pa.Buffer | None:
    if valid_N.all():
        return None
    return pa.py_buffer(np.packbits(valid_N, bitorder="little"))


def _texts(text: Array, end_N: Array, valid: pa.Buffer | None) -> pa.Array:
    """Strings of what was used of `text`: a copy, for most of it was not."""
    used = pa.py_buffer(text[: end_N[-1]].tobytes())
    return pa.StringArray.from_buffers(len(end_N) - 1, pa.py_buffer(end_N), used, valid)


def _lists(items: pa.Array, end_N: Array, valid: pa.Buffer | None) -> pa.Array:
    kind, buffers = pa.list_(items.type), [valid, pa.py_buffer(end_N)]
    return pa.Array.from_buffers(kind, len(end_N) - 1, buffers, children=[items])
