"""Avro schemas: those of writers, made plain for the decoder, and ours.

The decoder knows fewer types than Avro has. A plain schema reads the same bytes: names are written
out, logical types but times are dropped, bytes are read as a string, a fixed as so many floats, and
fields without bytes are left out. What cannot be read that way, or could grow without end from few
bytes, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "string"})
KEPT_LOGICAL = frozenset({"timestamp-millis", "timestamp-micros"})
DECIMALS = frozenset({"decimal", "big-decimal"})
"""Marks that a plain type keeps, since such bytes are no text."""
NOTHING = {"name": "nothing", "type": "null"}
"""The field of a record that has no bytes: the decoder knows none without fields."""
MAX_TYPES = 10_000
"""A schema that is larger when written out is refused."""
Type = Any
"""A type as JSON has it: a name, a list of types, or an object."""


class UnusableSchema(ValueError):
    """A schema whose events cannot be read; the message says why."""


def plain(text: str, references: Sequence[str] = ()) -> Type:
    """The plain schema of a record.

    Args:
        text: of the writer.
        references: schemas that it builds upon, each behind those it needs itself.

    Raises:
        UnusableSchema: no Avro, no record, or nothing that the decoder can read.
    """
    flattener = _Flattener()
    try:
        for reference in references:
            flattener.plain(json.loads(reference), "")
        found = flattener.plain(json.loads(text), "")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UnusableSchema(f"no usable Avro schema: {error!r}") from error
    if not isinstance(found, dict) or found["type"] != "record":
        raise UnusableSchema("no Avro record")
    return found


def holds_decimals(found: Type) -> bool:
    """Whether the values of a column of a plain type are decimals, or lists of them."""
    if isinstance(found, list):
        return any(map(holds_decimals, found))
    if not isinstance(found, dict):
        return False
    return found.get("logicalType") in DECIMALS or holds_decimals(found.get("items"))


def of_columns(columns: pa.Schema, name: str) -> Type:
    """Our schema: a nullable column is a union with null, which is its default."""
    namespace, _, short = name.rpartition(".")
    fields = []
    for column in columns:
        if column.nullable:
            fields.append({"name": column.name, "type": optional(column.type), "default": None})
        else:
            fields.append({"name": column.name, "type": of_type(column.type)})
    return {"type": "record", "name": short, "namespace": namespace, "fields": fields}


def optional(kind: pa.DataType) -> Type:
    """A type or null."""
    return ["null", of_type(kind)]


def of_type(kind: pa.DataType) -> Type:
    """The Avro type of an event's column."""
    if pa.types.is_list(kind):
        return {"type": "array", "items": optional(kind.value_type)}
    if pa.types.is_string(kind):
        return "string"
    if pa.types.is_integer(kind):
        return "long" if kind.bit_width == 64 else "int"
    return "double" if kind.bit_width == 64 else "float"


class _Flattener:
    """Writes names out; every named type gets a name of its own wherever it stands."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Type, str]] = {}
        self._open: list[str] = []
        self._count = 0

    def plain(self, given: Type, space: str) -> Type:
        """The plain type of one that stands in a namespace."""
        self._count += 1
        if self._count > MAX_TYPES:
            raise UnusableSchema(f"more than {MAX_TYPES} types")
        if isinstance(given, list):
            return [self.plain(branch, space) for branch in given]
        if isinstance(given, str):
            return self._named(given, space)
        kind = given["type"]
        if kind in ("record", "error", "enum", "fixed"):
            return self._defined(given, space)
        if kind == "array":
            return {"type": "array", "items": self._item(given["items"], space)}
        if kind == "map":
            return self._map(self.plain(given["values"], space))
        if kind == "bytes" and given.get("logicalType") in DECIMALS:
            return {"type": "string", "logicalType": given["logicalType"]}
        if given.get("logicalType") in KEPT_LOGICAL and kind == "long":
            return {"type": "long", "logicalType": given["logicalType"]}
        return self.plain(kind, space)

    def _named(self, name: str, space: str) -> Type:
        if name in PRIMITIVES:
            return name
        if name == "bytes":
            return "string"
        full = name if "." in name or not space else f"{space}.{name}"
        given, own_space = self._known[full if full in self._known else name]
        return self._body(given, own_space, full)

    def _defined(self, given: Type, space: str) -> Type:
        name = given["name"]
        own_space = given.get("namespace", space)
        if "." in name:
            own_space = name.rpartition(".")[0]
        elif own_space:
            name = f"{own_space}.{name}"
        self._known[name] = given, own_space
        return self._body(given, own_space, name)

    def _body(self, given: Type, space: str, full: str) -> Type:
        if full in self._open:
            raise UnusableSchema(f"{full} contains itself")
        unique = f"t{self._count}"
        if given["type"] == "enum":
            return {"type": "enum", "name": unique, "symbols": given["symbols"]}
        if given["type"] == "fixed":
            return _fixed(unique, given["size"])
        self._open.append(full)
        fields = [
            {"name": field["name"], "type": kind}
            for field in given["fields"]
            if not _is_empty(kind := self.plain(field["type"], space))
        ]
        self._open.pop()
        return {"type": "record", "name": unique, "fields": fields or [NOTHING]}

    def _map(self, values: Type) -> Type:
        if not _is_empty(values):
            return {"type": "map", "values": values}
        key = {"name": "key", "type": "string"}  # a list of keys has the same bytes
        item = {"type": "record", "name": f"t{self._count}_key", "fields": [key]}
        return {"type": "array", "items": item}

    def _item(self, given: Type, space: str) -> Type:
        item = self.plain(given, space)
        if _is_empty(item):
            raise UnusableSchema("an array of items without bytes")
        return item


def _fixed(name: str, size: int) -> Type:
    if size % 4 or not size:
        raise UnusableSchema(f"a fixed of {size} bytes; it must be a multiple of 4")
    fields = [{"name": f"f{i}", "type": "float"} for i in range(size // 4)]
    if len(fields) > MAX_TYPES:
        raise UnusableSchema(f"a fixed of {size} bytes")
    return {"type": "record", "name": name, "fields": fields}


def _is_empty(found: Type) -> bool:
    """Whether a value of a plain type may have no bytes."""
    if isinstance(found, dict) and found["type"] == "record":
        return all(_is_empty(field["type"]) for field in found["fields"])
    return bool(found == "null")
