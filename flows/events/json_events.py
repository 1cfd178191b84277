"""JSON messages to columns: all at once if all are good, and which are not if some are bad.

Whether a message is accepted depends on that message alone, never on its neighbours in a batch: a
replay cuts the log into other batches and must come to the same rows.

Plain messages, as most writers write them all, are read by one compiled pass (`plain_json`). One
call of pyarrow's parser reads all others, joined by newlines. It ends objects by their braces, not
at newlines, so messages could merge or split. They do not, if each begins with `{`, ends with `}`,
and there are as many rows as messages: inside an object or a list no `{` may follow a `}`, and no
raw newline may stand in a string, so every join lies between two objects, every message holds one
or more whole objects, and equal counts leave one each.

Two things are kept from that parser, which would end the process or its input: a `null` between
objects, and NUL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from flows.events.compiling import Array
from flows.events.plain_json import BEFORE, PlainJson
from flows.events.words import PADDING

NULL_BEHIND_OBJECT = re.compile(rb"}\s*null")
AT_ONCE = 2048
"""Messages that are joined: what they hold stays in the processor's cache."""
BYTES_AT_ONCE = 2**22
"""Of these messages; longer ones are read in smaller groups."""
PIECE = 64
"""A batch that holds a bad message is cut to pieces of at most this, each looked at by itself."""
PARTS = 8
"""Pieces that a larger one is cut into."""
SPACE = b" \t\r\n"
OPEN, CLOSE = set(b"{"), set(b"}")
FIRST, LAST = itemgetter(0), itemgetter(-1)
_Parse = Callable[[list[bytes]], tuple[pa.Table, dict[int, str]]]


class JsonReader:
    """Reads messages of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        """Prepare for a schema.

        Args:
            schema: names and types; nullability is not looked at. Fields that are not in it are
                ignored, absent ones null.
        """
        self._schema = pa.schema([field.with_nullable(True) for field in schema])
        self._plain = PlainJson(self._schema)

    def parse(self, values: Sequence[bytes | None]) -> tuple[pa.Table, dict[int, str]]:
        """Columns of the good messages, in order.

        Args:
            values: one JSON object each.

        Returns:
            A row for each accepted message, and the reason for each other position of `values`.
        """
        return _in_groups(self._parse, [value or b"" for value in values], AT_ONCE)

    def parse_lines(self, block: bytes) -> tuple[pa.Table, dict[int, str]]:
        """What `parse` says of the lines of a block, faster, for they need not be cut.

        Args:
            block: whole lines, one JSON object each; the last may lack its newline.
        """
        end = b"" if not block or block.endswith(b"\n") else b"\n"
        framed = b"".join((BEFORE, block, end, PADDING))
        num = int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n"))) + len(end)
        read = self._plain.read(framed, num) if _is_utf8(framed) else None
        if read is not None and read[1].all():
            return read[0], {}
        return self.parse((block + end).split(b"\n")[:-1])

    def _parse(self, values: list[bytes]) -> tuple[pa.Table, dict[int, str]]:
        """Those that are plain in one pass, the others together."""
        if not values:
            return self._schema.empty_table(), {}
        if len(values) > 1 and sum(map(len, values)) > BYTES_AT_ONCE:
            return _in_groups(self._parse, values, -(-len(values) // 2))
        read = self._read_plain(values)
        if read is None:  # without those that would be no text, or more lines than one
            read = self._read_plain([v if _is_utf8(v) and b"\n" not in v else b"" for v in values])
        if read is None:  # the schema is none for it
            return self._parse_all(values)
        table, is_plain_N = read
        if is_plain_N.all():
            return table, {}
        others = np.flatnonzero(~is_plain_N)
        full, faults = self._parse_all([values[i] for i in others])
        bad = {int(others[i]): reason for i, reason in faults.items()}
        kept = np.append(np.flatnonzero(is_plain_N), np.delete(others, list(faults)))
        table = pa.concat_tables([table.filter(pa.array(is_plain_N)), full])
        return table.take(pa.array(np.argsort(kept), pa.int64())), bad

    def _read_plain(self, values: list[bytes]) -> tuple[pa.Table, Array] | None:
        framed = b"\n".join((b"", *values, PADDING))
        return self._plain.read(framed, len(values)) if _is_utf8(framed) else None

    def _parse_all(self, values: list[bytes]) -> tuple[pa.Table, dict[int, str]]:
        """By the full parser: together if none is bad, else in ever smaller groups."""
        if (table := self._parse_together(values)) is not None:
            return table, {}
        if len(values) <= PIECE:
            return self._parse_piece(values)
        return _in_groups(self._parse_all, values, max(PIECE, -(-len(values) // PARTS)))

    def _parse_piece(self, values: list[bytes]) -> tuple[pa.Table, dict[int, str]]:
        """Find the bad ones among few messages."""
        reasons = {i: why for i, value in enumerate(values) if (why := fault(value, self._schema))}
        groups = [[i] for i in reasons]  # what Python refuses, pyarrow decides alone
        groups += [[i for i in range(len(values)) if i not in reasons]]
        tables: list[pa.Table] = [self._schema.empty_table()]
        kept: list[int] = []
        while groups:
            group = groups.pop()
            table = self._parse_together([values[i] for i in group])
            if table is not None:
                tables.append(table)
                kept += group
            elif len(group) > 1:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
            else:
                reasons.setdefault(group[0], "not_json")
        bad = {i: reasons[i] for i in sorted(set(range(len(values))) - set(kept))}
        return pa.concat_tables(tables).take(pa.array(np.argsort(kept), pa.int64())), bad

    def _parse_together(self, values: list[bytes]) -> pa.Table | None:
        """A row for each message; None if any of them is bad."""
        if not values:
            return self._schema.empty_table()
        if not _all_braced(values):
            return None
        return self._parse_joined(b"\n".join((*values, b"")), len(values))

    def _parse_joined(self, data: bytes, num: int) -> pa.Table | None:
        """A row for each of `num` messages that begin and end with braces, joined by newlines."""
        if not _is_safe(data, num):
            return None
        try:
            table = pa.json.read_json(
                pa.BufferReader(data),
                read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pa.json.ParseOptions(
                    explicit_schema=self._schema, unexpected_field_behavior="ignore"
                ),
            )
        except pa.ArrowException:
            return None
        return table if table.num_rows == num else None


def fault(value: bytes, schema: pa.Schema) -> str | None:
    """Why a message cannot be read, or None if a stricter reader than pyarrow's finds nothing."""
    if not value.strip(SPACE):
        return "empty"
    try:
        pairs = json.loads(value.decode("utf-8"), object_pairs_hook=tuple)
    except UnicodeDecodeError:
        return "not_utf8"
    except (ValueError, RecursionError):
        return "not_json"
    if not isinstance(pairs, tuple):
        return "not_an_object"
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs if name in schema.names]
        if len(set(names)) != len(names):
            return "duplicate_field"
    for field in schema:
        found = fields.get(field.name)
        if found is not None and not fits(found, field.type):
            return "wrong_type"
    return None


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a JSON value can stand in a column of that type."""
    if pa.types.is_string(kind):
        return isinstance(value, str)
    if pa.types.is_integer(kind):
        limit = 1 << (kind.bit_width - 1)
        return type(value) is int and -limit <= value < limit
    if pa.types.is_floating(kind):
        return type(value) in (int, float)
    return isinstance(value, list) and all(x is None or fits(x, kind.value_type) for x in value)


def _in_groups(parse: _Parse, values: list[bytes], num: int) -> tuple[pa.Table, dict[int, str]]:
    """What `parse` says of each group of at most `num` messages."""
    tables: list[pa.Table] = []
    bad: dict[int, str] = {}
    for start in range(0, len(values) or 1, num):
        table, faults = parse(values[start : start + num])
        tables.append(table)
        bad.update({start + i: reason for i, reason in faults.items()})
    return pa.concat_tables(tables).combine_chunks(), bad


def _all_braced(values: list[bytes]) -> bool:
    if all(values) and set(map(FIRST, values)) == OPEN and set(map(LAST, values)) == CLOSE:
        return True  # as most writers have it
    return all(map(_braced, values))


def _braced(value: bytes) -> bool:
    value = value.strip(SPACE)
    return value[:1] == b"{" and value[-1:] == b"}"


def _is_safe(data: bytes, num: int) -> bool:
    if b"\0" in data or not _is_utf8(data):
        return False
    if np.count_nonzero(np.frombuffer(data, np.uint8) == ord("}")) == num:
        return True  # one ends each message, so nothing stands behind an object
    if NULL_BEHIND_OBJECT.search(data) is None:
        return True
    return num == 1 and _is_json(data)  # it stands in a string: rare, so looked at alone


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
