"""Avro and Protobuf events: what is written is read, and every message is a row or set aside."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from google.protobuf.descriptor_pb2 import (
    Edition,
    FeatureSet,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.events.avro_schema import UnusableSchema, plain
from flows.events.encoding import FramedEvents
from flows.events.framed_events import Framed, FramedParser
from flows.events.schema_registry import Registry, WriterSchema
from flows.events.unknown_ids import UnknownIds
from flows.events.wire_format import prefix
from flows.registry_settings import SchemaRegistry

FORMATS: list[Framed] = ["avro", "protobuf"]
COLUMNS = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("ts_ms", pa.int64(), nullable=False),
        pa.field("value", pa.int8(), nullable=False),
        pa.field("user_id", pa.int64()),
        pa.field("device", pa.string()),
        pa.field("price", pa.float32()),
        pa.field("recent", pa.list_(pa.string())),
        pa.field("seen", pa.list_(pa.int64())),
        pa.field("p_click", pa.float64()),
    ]
)
NULLABLE = pa.schema([field.with_nullable(True) for field in COLUMNS])
NOW_MS = 1_700_000_000_000
GOOD: dict[str, Any] = {
    "impression_id": "i-1",
    "ts_ms": NOW_MS,
    "value": 1,
    "user_id": -7,
    "device": "ph\u00f6ne",
    "price": 1.5,
    "recent": ["a", "b"],
    "seen": [1, -(2**40)],
    "p_click": 0.25,
}
SPARSE: dict[str, Any] = {
    **dict.fromkeys(GOOD),
    "impression_id": "",
    "ts_ms": 0,
    "value": 0,
    "recent": [],
}


def fresh() -> Registry:
    """A registry of its own, which nobody waits for."""
    client = SchemaRegistryClient.new_client({"url": f"mock://{uuid.uuid4().hex}"})
    return Registry(client, SchemaRegistry(), UnknownIds("mock", pause=lambda _: None))


def rows(*events: dict[str, Any], columns: pa.Schema = NULLABLE) -> pa.Table:
    return pa.Table.from_pylist(list(events), schema=columns)


def written(
    form: Framed, table: pa.Table, registry: Registry, columns: Any = COLUMNS
) -> list[bytes]:
    return FramedEvents(form, columns, "Event", "events", registry).write(table)


def registered(registry: Registry, kind: str, text: str) -> bytes:
    return prefix(registry.register("events", uuid.uuid4().hex, WriterSchema(kind=kind, text=text)))


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_read(form: Framed) -> None:
    registry = fresh()
    table = rows(GOOD, {**SPARSE, "seen": []}, GOOD)
    values = written(form, table, registry)
    found, bad = FramedParser(form, COLUMNS, registry).parse(values)
    assert bad == {}
    assert found.schema == NULLABLE
    assert found.to_pylist() == table.to_pylist()


def test_null_and_empty_lists_differ_in_avro_only() -> None:
    registry = fresh()
    table = rows({**GOOD, "recent": None, "seen": [1, None]}, {**GOOD, "recent": ["a", None]})
    found, _ = FramedParser("avro", COLUMNS, registry).parse(written("avro", table, registry))
    assert found.to_pylist() == table.to_pylist()
    with pytest.raises(ValueError, match=r"'recent'.* a list holds a null"):
        written("protobuf", table, registry)
    one = rows({**GOOD, "recent": None})
    found, _ = FramedParser("protobuf", COLUMNS, registry).parse(written("protobuf", one, registry))
    assert found["recent"].to_pylist() == [[]]


@pytest.mark.parametrize("form", FORMATS)
def test_required_null_is_not_written(form: Framed) -> None:
    with pytest.raises(ValueError, match="impression_id"):
        written(form, rows({**GOOD, "impression_id": None}), fresh())


def avro(fields: list[dict[str, Any]]) -> str:
    return json.dumps({"type": "record", "name": "Theirs", "namespace": "shop", "fields": fields})


ID = {"name": "impression_id", "type": "string"}
TS = {"name": "ts_ms", "type": "long"}
VALUE = {"name": "value", "type": "int"}


def record(*fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Inner", "fields": list(fields)}


EMPTY = {"type": "record", "name": "Empty", "fields": list[Any]()}
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}
TIMES = {"type": "long", "logicalType": "timestamp-micros"}


def long(number: int) -> bytes:
    """A number of at least 0 as Avro writes it."""
    number *= 2
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


IDENTITY = b"\x06i-1" + long(NOW_MS) + b"\x02"
"""Of ID, TS and VALUE."""


def avro_rows(
    fields: list[dict[str, Any]], *records: bytes
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    registry = fresh()
    head = registered(registry, "AVRO", avro(fields))
    table, bad = FramedParser("avro", COLUMNS, registry).parse([head + r for r in records])
    return table.to_pylist(), bad


@pytest.mark.parametrize(
    ("field", "data", "seen"),
    [
        ({"name": "new", "type": "string"}, b"\x04xy", {}),
        ({"name": "new", "type": ["null", "double"], "default": None}, b"\0", {}),
        ({"name": "new", "type": "bytes"}, b"\x04\xff\xfe", {}),
        ({"name": "new", "type": {"type": "fixed", "name": "F", "size": 16}}, b"\xff" * 16, {}),
        ({"name": "new", "type": DECIMAL}, b"\x02\x05", {}),
        ({"name": "new", "type": ["null", DECIMAL]}, b"\x02\x02\xff", {}),
        (
            {
                "name": "new",
                "type": [
                    "null",
                    "long",
                    {
                        "type": "record",
                        "name": "R",
                        "fields": [{"name": "m", "type": {"type": "map", "values": "int"}}],
                    },
                ],
            },
            b"\x04\x02\x02k\x05\0",
            {},
        ),
        ({"name": "new", "type": EMPTY}, b"", {}),
        ({"name": "new", "type": "null"}, b"", {}),
        ({"name": "new", "type": {"type": "map", "values": EMPTY}}, b"\x02\x02k\0", {}),
        ({"name": "new", "type": {"type": "map", "values": "null"}}, b"\x01\x04\x02k\0", {}),
        ({"name": "new", "type": ["null", EMPTY]}, b"\x02", {}),
        ({"name": "new", "type": ["null", "long", EMPTY]}, b"\x04", {}),
        ({"name": "new", "type": [EMPTY]}, b"\0", {}),
        ({"name": "new", "type": {"type": "array", "items": ["null", EMPTY]}}, b"\x02\x02\0", {}),
        ({"name": "new", "type": record({"name": "e", "type": EMPTY}, VALUE)}, b"\x02", {}),
        ({"name": "new", "type": record({"name": "e", "type": EMPTY})}, b"", {}),
        ({"name": "user_id", "type": "int"}, b"\x05", {"user_id": -3}),
        ({"name": "user_id", "type": ["int", "null"]}, b"\x02", {"user_id": None}),
        ({"name": "user_id", "type": "null"}, b"", {"user_id": None}),
        ({"name": "price", "type": "long"}, b"\x06", {"price": 3.0}),
        ({"name": "price", "type": "double"}, b"\0" * 6 + b"\xf8\x3f", {"price": 1.5}),
        ({"name": "device", "type": "bytes"}, b"\x04ab", {"device": "ab"}),
        (
            {"name": "device", "type": {"type": "enum", "name": "D", "symbols": ["pc", "tv"]}},
            b"\x02",
            {"device": "tv"},
        ),
        (
            {"name": "device", "type": {"type": "string", "logicalType": "uuid"}},
            b"\x02u",
            {"device": "u"},
        ),
        (
            {"name": "seen", "type": {"type": "array", "items": "int"}},
            b"\x04\x02\x04\0",
            {"seen": [1, 2]},
        ),
        (
            {"name": "seen", "type": {"type": "array", "items": "long"}},
            b"\x01\x02\x02\x02\x04\0",  # two blocks, one with its size
            {"seen": [1, 2]},
        ),
    ],
)
def test_writers_of_other_avro_schemas_are_read(
    field: dict[str, Any], data: bytes, seen: dict[str, Any]
) -> None:
    (row,), bad = avro_rows([ID, TS, VALUE, field], IDENTITY + data)
    assert bad == {}
    assert {**row, **seen} == row
    assert row["impression_id"] == "i-1"


def test_avro_time_may_be_a_timestamp() -> None:
    for unit, scale in (("millis", 1), ("micros", 1000)):
        ts = {"name": "ts_ms", "type": {"type": "long", "logicalType": f"timestamp-{unit}"}}
        (row,), _ = avro_rows([ID, ts, VALUE], b"\x06i-1" + long(NOW_MS * scale) + b"\x02")
        assert row["ts_ms"] == NOW_MS


@pytest.mark.parametrize(
    "fields",
    [
        [ID, VALUE],
        [ID, {**TS, "type": "string"}, VALUE],
        [ID, {**TS, "type": ["int", "long"]}, VALUE],
        [ID, TS, VALUE, {"name": "price", "type": "string"}],
        [ID, TS, VALUE, {"name": "user_id", "type": TIMES}],
        [ID, TS, VALUE, {"name": "device", "type": DECIMAL}],
        [ID, TS, VALUE, {"name": "device", "type": ["null", {"type": DECIMAL}]}],
        [ID, TS, VALUE, {"name": "recent", "type": {"type": "array", "items": DECIMAL}}],
        [ID, TS, VALUE, {"name": "recent", "type": {"type": "map", "values": EMPTY}}],
        [ID, {**TS, "type": "null"}, VALUE],
        [ID, TS, VALUE, {"name": "seen", "type": {"type": "array", "items": "string"}}],
        [ID, TS, VALUE, {"name": "new", "type": {"type": "array", "items": "null"}}],
        [ID, TS, VALUE, {"name": "new", "type": ["null", "shop.Theirs"]}],
        [ID, TS, VALUE, {"name": "new", "type": {"type": "fixed", "name": "F", "size": 3}}],
        [ID, TS, VALUE, {"name": "new", "type": "shop.Missing"}],
        [ID, TS, VALUE, ID],
    ],
)
def test_every_event_of_an_unfit_avro_schema_is_rejected(fields: list[dict[str, Any]]) -> None:
    assert avro_rows(fields, IDENTITY, IDENTITY) == ([], dict.fromkeys((0, 1), "schema_mismatch"))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"string"', '{"type":"record"}', "[" * 9999])
def test_text_that_is_no_avro_record_is_refused(text: str) -> None:
    with pytest.raises(UnusableSchema):
        plain(text)


def test_schema_that_grows_without_end_is_refused() -> None:
    fields: list[dict[str, Any]] = []
    for depth in range(30):
        inner: Any = "int" if not depth else f"R{depth - 1}"
        twice = [{"name": "a", "type": inner}, {"name": "b", "type": inner}]
        fields.append(
            {"name": f"f{depth}", "type": {"type": "record", "name": f"R{depth}", "fields": twice}}
        )
    with pytest.raises(UnusableSchema, match="more than"):
        plain(avro(fields))


def test_avro_schema_may_refer_to_others() -> None:
    registry = fresh()
    client = registry._client
    inner = {"type": "enum", "name": "Device", "namespace": "shop", "symbols": ["pc", "tv"]}
    client.register_schema("device", Schema(json.dumps(inner), "AVRO"))
    outer = avro([ID, TS, VALUE, {"name": "device", "type": "Device"}])
    number = client.register_schema(
        "events", Schema(outer, "AVRO", [SchemaReference("shop.Device", "device", 1)])
    )
    table, bad = FramedParser("avro", COLUMNS, registry).parse(
        [prefix(number) + IDENTITY + b"\x02"]
    )
    assert (bad, table["device"].to_pylist()) == ({}, ["tv"])


@pytest.mark.parametrize("form", FORMATS)
def test_optional_column_may_come_and_go(form: Framed) -> None:
    registry = fresh()
    older = pa.schema([field for field in COLUMNS if field.name != "price"])
    newer = pa.schema([*COLUMNS, pa.field("colour", pa.string())])
    values = [
        *written(form, rows(GOOD), registry, older),
        *written(form, rows({**GOOD, "colour": "red"}, columns=newer), registry, newer),
        *written(form, rows(GOOD), registry),
    ]
    table, bad = FramedParser(form, COLUMNS, registry).parse([values[i] for i in (1, 0, 2, 0)])
    assert bad == {}
    without = {**GOOD, "price": None}
    assert table.to_pylist() == [GOOD, without, GOOD, without]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("change", ["absent", "other type"])
def test_events_of_an_unfit_schema_are_rejected_and_no_others(form: Framed, change: str) -> None:
    registry = fresh()
    other = pa.schema([field for field in NULLABLE if field.name != "ts_ms"])
    if change == "other type":
        other = other.append(pa.field("ts_ms", pa.string()))
    theirs = rows({**GOOD, "ts_ms": "1"}, columns=other)
    unfit, good = written(form, theirs, registry, other), written(form, rows(GOOD), registry)
    table, bad = FramedParser(form, COLUMNS, registry).parse([*unfit, *good, *unfit])
    assert bad == dict.fromkeys((0, 2), "schema_mismatch")
    assert table.to_pylist() == [GOOD]


@pytest.mark.parametrize("form", FORMATS)
def test_value_that_does_not_fit_is_rejected_alone(form: Framed) -> None:
    registry = fresh()
    place = COLUMNS.get_field_index("value")
    wide = COLUMNS.set(place, pa.field("value", pa.int64(), nullable=False))
    events = rows(
        *({**GOOD, "value": 2**40 if i == 77 else i % 2} for i in range(100)), columns=wide
    )
    table, bad = FramedParser(form, COLUMNS, registry).parse(written(form, events, registry, wide))
    assert bad == {77: "wrong_type"}
    assert table["value"].to_pylist() == [i % 2 for i in range(100) if i != 77]


@pytest.mark.parametrize("form", FORMATS)
def test_reasons_of_messages_that_cannot_be_read(form: Framed) -> None:
    registry = fresh()
    (good,) = written(form, rows(GOOD), registry)
    odd = {
        None: "empty",
        b"": "empty",
        good[:4]: "not_framed",
        b"\1" + good[1:]: "not_framed",
        b'{"impression_id": "i"}': "not_framed",
        prefix(2**32 - 1) + good[5:]: "unknown_schema",
        registered(registry, "JSON", "{}") + good[5:]: "schema_mismatch",
        good[:-1]: f"not_{form}",
        good + b"\0": f"not_{form}",
        good.replace("\u00f6".encode(), b"\xff\xff"): f"not_{form}",
    }
    values = [good, *odd, good]
    table, bad = FramedParser(form, COLUMNS, registry).parse(values)
    assert bad == dict(enumerate(odd.values(), start=1))
    assert table.to_pylist() == [GOOD, GOOD]


def protobuf(*fields: dict[str, Any], syntax: str = "proto3", nest: bool = False) -> str:
    file = FileDescriptorProto(name="theirs.proto", package="shop", syntax=syntax)
    file.message_type.add(name="First").field.add(name="x", number=1, type=11, type_name=".a.B")
    message = file.message_type.add(name="Theirs")
    if nest:
        message = message.nested_type.add(name="Inner")
    for number, field in enumerate(fields, start=3):
        message.field.add(**{"number": number, "label": 1, **field})
    enum = file.message_type[1].enum_type.add(name="Device")
    for number, name in enumerate(("NONE", "PC", "TV")):
        if number or syntax == "proto3":
            enum.value.add(name=name, number=number)
    return base64.b64encode(file.SerializeToString()).decode()


P_ID = {"name": "impression_id", "type": FieldDescriptorProto.TYPE_STRING}
P_TS = {"name": "ts_ms", "type": FieldDescriptorProto.TYPE_FIXED64}
P_VALUE = {"name": "value", "type": FieldDescriptorProto.TYPE_SINT32}
P_TIME = {"name": "ts_ms", "type": 11, "type_name": ".google.protobuf.Timestamp"}
DEVICE = {"name": "device", "type": 14, "type_name": ".shop.Theirs.Device"}
P_BODY = b"\x1a\x03i-1" + b"\x21" + (NOW_MS).to_bytes(8, "little") + b"\x28\x02"
P_TIMED = b"\x1a\x03i-1" + b"\x22\x08\x08\x80\xe2\xcf\xaa\x06\x10\x01" + b"\x30\x02"
"""Of P_ID, P_TIME and DEVICE."""


def protobuf_row(
    path: bytes, body: bytes, text: str
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    registry = fresh()
    value = registered(registry, "PROTOBUF", text) + path + body
    table, bad = FramedParser("protobuf", COLUMNS, registry).parse([value])
    return table.to_pylist(), bad


@pytest.mark.parametrize(("path", "nest"), [(b"\x02\x02", False), (b"\x04\x02\x00", True)])
@pytest.mark.parametrize("syntax", ["proto2", "proto3"])
def test_protobuf_message_is_found_by_its_path(path: bytes, nest: bool, syntax: str) -> None:
    text = protobuf(P_ID, P_TS, P_VALUE, syntax=syntax, nest=nest)
    (row,), bad = protobuf_row(path, P_BODY, text)
    assert (bad, row["ts_ms"], row["value"]) == ({}, NOW_MS, 1)


@pytest.mark.parametrize(
    "path", [b"\x02\x04", b"\x02\x03", b"\x04\x02\x02", b"\x7f", b"\x01", b"", b"\xff" * 9]
)
def test_path_that_leads_nowhere_is_rejected(path: bytes) -> None:
    rows, bad = protobuf_row(path, P_BODY, protobuf(P_ID, P_TS, P_VALUE))
    assert rows == []
    assert bad[0] in ("not_framed", "schema_mismatch")


def test_message_at_which_the_decoder_panics_is_rejected_alone() -> None:
    registry = fresh()
    head = registered(registry, "PROTOBUF", protobuf(P_ID, P_TS, P_VALUE)) + b"\x02\x02"
    values = [head + P_BODY, head + b"\x1a" + b"\xff" * 9 + b"\1", head + P_BODY]
    table, bad = FramedParser("protobuf", COLUMNS, registry).parse(values)
    assert (bad, len(table)) == ({1: "not_protobuf"}, 2)


def test_protobuf_field_may_be_an_enum_a_time_or_without_presence() -> None:
    odd = {"name": "odd", "type": 11, "type_name": ".nowhere.Unknown"}
    price = {"name": "price", "type": FieldDescriptorProto.TYPE_FLOAT}
    text = protobuf(P_ID, P_TIME, P_VALUE, DEVICE, odd, price)
    (row,), bad = protobuf_row(b"\x02\x02", P_TIMED + b"\x3a\x01z", text)
    assert bad == {}
    assert row["ts_ms"] == NOW_MS
    assert (row["device"], row["value"], row["price"]) == ("TV", 0, 0.0)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("dot", [".", ""])
def test_names_of_protobuf_types_may_stand_as_in_the_text(typed: bool, dot: str) -> None:
    """Confluent's registry leaves out the type, and dots that the text does not have."""
    time: dict[str, Any] = {"name": "ts_ms", "type_name": f"{dot}google.protobuf.Timestamp"}
    enum: dict[str, Any] = {
        "name": "device",
        "type_name": ".shop.Theirs.Device" if dot else "Device",
    }
    if typed:
        time, enum = {**time, "type": 11}, {**enum, "type": 14}
    (row,), bad = protobuf_row(b"\x02\x02", P_TIMED, protobuf(P_ID, time, P_VALUE, enum))
    assert (bad, row["ts_ms"], row["device"]) == ({}, NOW_MS, "TV")


def test_required_protobuf_fields_are_read_and_may_be_absent() -> None:
    required = [{**field, "label": 2} for field in (P_ID, P_TS, P_VALUE)]
    text = protobuf(*required, {**DEVICE, "label": 2}, syntax="proto2")
    (row,), bad = protobuf_row(b"\x02\x02", P_BODY + b"\x30\x01", text)
    assert (bad, row["impression_id"], row["ts_ms"], row["device"]) == ({}, "i-1", NOW_MS, "PC")
    (row,), bad = protobuf_row(b"\x02\x02", P_BODY[:5], text)
    assert (bad, row["ts_ms"], row["device"]) == ({}, None, None)


@pytest.mark.parametrize(
    ("syntax", "number", "seen"),
    [
        ("proto3", b"\x4d", "77"),
        ("proto2", b"\x4d", "77"),
        ("proto3", b"\0", "NONE"),
        ("proto2", b"\0", "0"),
    ],
)
def test_number_that_an_enum_does_not_have_is_read_as_its_digits(
    syntax: str, number: bytes, seen: str
) -> None:
    text = protobuf(P_ID, P_TS, P_VALUE, DEVICE, syntax=syntax)
    (row,), bad = protobuf_row(b"\x02\x02", P_BODY + b"\x30" + number, text)
    assert (bad, row["device"]) == ({}, seen)


def test_protobuf_of_an_edition_is_read_with_its_presence() -> None:
    fields = [P_ID, P_TS, P_VALUE, DEVICE, {"name": "user_id", "type": 3}]
    file = FileDescriptorProto.FromString(base64.b64decode(protobuf(*fields)))
    file.syntax, file.edition = "editions", Edition.EDITION_2023
    file.options.features.field_presence = FeatureSet.IMPLICIT
    theirs = file.message_type[1]
    theirs.enum_type[0].options.features.enum_type = FeatureSet.CLOSED
    del theirs.enum_type[0].value[0]
    theirs.field[1].options.features.field_presence = FeatureSet.LEGACY_REQUIRED
    theirs.field[3].options.features.field_presence = FeatureSet.EXPLICIT
    text = base64.b64encode(file.SerializeToString()).decode()
    (row,), bad = protobuf_row(b"\x02\x02", P_BODY[:5], text)
    assert bad == {}
    assert (row["ts_ms"], row["value"], row["user_id"], row["device"]) == (None, 0, 0, None)
    (row,), _ = protobuf_row(b"\x02\x02", P_BODY + b"\x30\x02", text)
    assert (row["ts_ms"], row["device"]) == (NOW_MS, "TV")


def test_protobuf_file_may_import_others() -> None:
    registry = fresh()
    client = registry._client
    devices = FileDescriptorProto(package="shop.parts", syntax="proto3")
    devices.enum_type.add(name="Device").value.add(name="PC", number=0)
    devices.message_type.add(name="Odd").field.add(name="x", number=1, type=11, type_name=".a.B")
    encoded = base64.b64encode(devices.SerializeToString()).decode()
    client.register_schema("devices", Schema(encoded, "PROTOBUF"))
    client.register_schema("text", Schema('syntax = "proto3";', "PROTOBUF"))
    column = {"name": "device", "type_name": "parts.Device"}
    number = client.register_schema(
        "events",
        Schema(
            protobuf(P_ID, P_TS, P_VALUE, column),
            "PROTOBUF",
            [
                SchemaReference("shop/devices.proto", "devices", 1),
                SchemaReference("shop/text.proto", "text", 1),
            ],
        ),
    )
    parser = FramedParser("protobuf", COLUMNS, registry)
    table, bad = parser.parse([prefix(number) + b"\x02\x02" + P_BODY])
    assert (bad, table["device"].to_pylist()) == ({}, ["PC"])


def unfinished(text: str) -> str:
    """A file with an option of which the name lacks what every name has."""
    file = FileDescriptorProto.FromString(base64.b64decode(text))
    file.options.uninterpreted_option.add().name.add()
    return base64.b64encode(file.SerializePartialToString()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        base64.b64encode(b"\xff\xff").decode(),
        unfinished(protobuf(P_ID, P_TS, P_VALUE)),
        protobuf(P_ID, P_VALUE),
        protobuf(P_ID, {**P_TS, "type": 9}, P_VALUE),
        protobuf(P_ID, {**P_TS, "label": 3}, P_VALUE),
        protobuf(P_ID, P_TS, P_VALUE, {**P_TIME, "name": "user_id"}),
        protobuf(P_ID, P_TS, P_VALUE, {"name": "price", "type": 11, "type_name": ".shop.First"}),
        protobuf(P_ID, P_TS, P_VALUE, {"name": "device", "type": 14, "type_name": ".other.E"}),
        protobuf(P_ID, P_TS, P_VALUE, P_ID),
        protobuf(P_ID, P_TS, P_VALUE, {"name": "price", "type": 2, "number": 3}),
        protobuf(P_ID, P_TS, P_VALUE, {"name": "price", "type": 2, "number": 19_001}),
    ],
)
def test_every_event_of_an_unfit_protobuf_schema_is_rejected(text: str) -> None:
    assert protobuf_row(b"\x02\x02", P_BODY, text) == ([], {0: "schema_mismatch"})


SHARED = fresh()
TWO = rows(GOOD, {**GOOD, "device": None, "seen": [], "recent": None})
WIRES = {form: written(form, TWO, SHARED) for form in FORMATS}
ENUMS = registered(
    SHARED,
    "AVRO",
    avro(
        [
            *(ID, TS, VALUE),
            {"name": "device", "type": {"type": "enum", "name": "D", "symbols": ["pc", "tv"]}},
            {"name": "m", "type": {"type": "map", "values": ["null", "boolean", "string"]}},
            {"name": "f", "type": {"type": "fixed", "name": "F", "size": 4}},
        ]
    ),
)
WIRES["avro"].append(ENUMS + IDENTITY + b"\x02" + b"\x02\x02k\x02\x01\0" + b"1234")
WIRES["protobuf"].append(
    registered(SHARED, "PROTOBUF", protobuf(P_ID, P_TS, P_VALUE, DEVICE, syntax="proto2"))
    + b"\x02\x02"
    + P_BODY
    + b"\x30\x02"
)


def messages(form: Framed) -> st.SearchStrategy[bytes | None]:
    def mutated(wire: bytes, at: int, cut: int, piece: bytes) -> bytes:
        at = min(at, len(wire))
        return wire[:at] + piece + wire[at + cut :]

    pieces = st.one_of(
        st.binary(max_size=12), st.sampled_from([b"\xff" * 9 + b"\1", b"\x7f", b"\x80" * 6])
    )
    wires = st.sampled_from(WIRES[form])
    body = st.builds(lambda wire, rest: wire[:7] + rest, wires, st.binary(max_size=60))
    damaged = st.builds(mutated, wires, st.integers(0, 90), st.integers(0, 12), pieces)
    return st.one_of(wires, damaged, damaged, body, st.binary(max_size=40), st.none())


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_are_rows_or_rejected_whatever_stands_beside_them(
    form: Framed, data: st.DataObject
) -> None:
    values = data.draw(st.lists(messages(form), max_size=8))
    parser = FramedParser(form, COLUMNS, SHARED)
    table, bad = parser.parse(values)
    alone = [parser.parse([value]) for value in values]
    assert bad == {i: reasons[0] for i, (_, reasons) in enumerate(alone) if reasons}
    assert len(table) + len(bad) == len(values)
    together = pa.concat_tables([NULLABLE.empty_table(), *(found for found, _ in alone)])
    assert str(table.to_pylist()) == str(together.to_pylist())  # NaN is as good as NaN
    table.validate(full=True)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("longer", [False, True])
def test_bad_messages_in_a_large_batch_are_found_one_by_one(form: Framed, longer: bool) -> None:
    values: list[bytes | None] = [WIRES[form][i % 3] for i in range(2000)]
    places = range(11, 2000, 97)
    for place in places:
        value = values[place] or b""
        values[place] = value + b"\0" if longer else value[:-1]
    table, bad = FramedParser(form, COLUMNS, SHARED).parse(values)
    assert bad == dict.fromkeys(places, f"not_{form}")
    assert len(table) == 2000 - len(bad)
