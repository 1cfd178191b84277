"""Every event is a row, or set aside with its own bytes, whatever its neighbours are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.events.arrow_events import one_row
from flows.events.decoding import Decoded, EventDecoder
from flows.events.encoding import FramedEvents, json_events
from flows.events.json_events import JsonReader
from flows.events.row_sizes import larger
from flows.events.rules import impression_rules, label_rules
from flows.events.schema_registry import connect
from flows.records import MAX_EVENT_BYTES, impression_schema
from flows.registry_settings import SchemaRegistry
from flows.settings import Settings

GOOD: dict[str, Any] = {
    "impression_id": "i-1",
    "domain": "feed",
    "ts_ms": 1_700_000_000_000,
    "user_id": 7,
    "device": "phone",
    "price": 1.5,
    "recent_ads": ["a", "b"],
    "p_click": 0.25,
}
WIRE = json.dumps(GOOD).encode()


def but(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


BAD: list[tuple[bytes | None, str]] = [
    (None, "empty"),
    (b"", "empty"),
    (b" \n ", "empty"),
    (b"not json", "not_json"),
    (WIRE[:-1], "not_json"),
    (WIRE + b"x", "not_json"),
    (WIRE + b"}", "not_json"),
    (WIRE + WIRE, "not_json"),
    (WIRE + b"\n" + WIRE, "not_json"),
    (WIRE + b" null " + WIRE, "not_json"),
    (b"\xef\xbb\xbf" + WIRE, "not_json"),
    (WIRE + b"\0}", "not_json"),
    (WIRE.replace(b"phone", b"ph\none"), "not_json"),
    (WIRE.replace(b"phone", b"\\ud800"), "not_json"),
    (b"{" + b'"q":[' * 5000 + b"}", "not_json"),
    (b"null", "not_an_object"),
    (b"[1]", "not_an_object"),
    (b"3", "not_an_object"),
    (b'"{}"', "not_an_object"),
    (WIRE.replace(b"phone", b"\xff"), "not_utf8"),
    (WIRE[:-1] + b', "domain": "feed"}', "duplicate_field"),
    (but(impression_id=5), "wrong_type"),
    (but(ts_ms="1700000000000"), "wrong_type"),
    (but(ts_ms=1.7e12), "wrong_type"),
    (but(user_id=2**63), "wrong_type"),
    (but(price="1"), "wrong_type"),
    (but(recent_ads="a"), "wrong_type"),
    (but(recent_ads=[1]), "wrong_type"),
    (but(device={}), "wrong_type"),
    (without("impression_id"), "missing_field"),
    (but(domain=None), "missing_field"),
    (without("ts_ms"), "missing_field"),
    (but(impression_id=""), "empty_id"),
    (but(ts_ms=-1), "ts_out_of_range"),
    (but(ts_ms=1_700_000_000), "ts_out_of_range"),
    (but(ts_ms=2**62), "ts_out_of_range"),
    (but(domain="mail"), "unknown_domain"),
    (but(price=float("nan")), "not_finite"),
    (but(p_click=float("inf")), "not_finite"),
    (but(price=1e300), "not_finite"),
]
ODD_BUT_GOOD = [
    WIRE,
    b" \n" + WIRE.replace(b", ", b",\r\n\t") + b"\n",
    but(extra={"a": [None, {"b": 1}]}, more=float("nan")),
    but(device='text } null {"'),
    but(price=3),
    but(price=None, recent_ads=None, user_id=None, p_click=None, device=None),
    but(recent_ads=[]),
    but(recent_ads=["a", None]),
    but(device="\u00fc \U0001f600"),
    without("price"),
]


def messages(values: Sequence[bytes | None]) -> list[Message]:
    return [
        Message(topic="t", partition=3, offset=100 + i, value=value)
        for i, value in enumerate(values)
    ]


def impressions(config: Settings, values: Sequence[bytes | None], form: Any = "json") -> Decoded:
    rules = impression_rules(config)
    return EventDecoder(rules.schema, form, rules.faults).decode(messages(values))


def labels(config: Settings, values: Sequence[bytes | None]) -> Decoded:
    rules = label_rules(config)
    return EventDecoder(rules.schema, "json", rules.faults).decode(messages(values))


def reasons(decoded: Decoded) -> dict[int, str]:
    return {(r.message.offset() or 0) - 100: r.reason for r in decoded.rejected}


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_bad_event_is_rejected_with_its_bytes(
    tiny_settings: Settings, value: bytes | None, reason: str
) -> None:
    decoded = impressions(tiny_settings, [WIRE, value, WIRE])
    (rejected,) = decoded.rejected
    assert (rejected.reason, rejected.value, rejected.index) == (reason, value, None)
    assert decoded.table["offset"].to_pylist() == [100, 102]


@pytest.mark.parametrize("value", ODD_BUT_GOOD)
def test_odd_event_is_read_as_python_reads_it(tiny_settings: Settings, value: bytes) -> None:
    decoded = impressions(tiny_settings, [WIRE, value])
    assert decoded.rejected == []
    row = decoded.table.to_pylist()[1]
    plain = json.loads(value)
    assert {name: row[name] for name in GOOD} == {name: plain.get(name) for name in GOOD}
    assert (row["partition"], row["offset"], row["index"]) == (3, 101, 0)


def test_decoded_columns_are_those_of_the_contract(tiny_settings: Settings) -> None:
    for values in ([], [WIRE], [b"bad"], [WIRE, b"bad"]):
        assert impressions(tiny_settings, values).table.schema == impression_schema(tiny_settings)


def test_long_sequence_is_cut(tiny_settings: Settings) -> None:
    decoded = impressions(tiny_settings, [but(recent_ads=list("abcdef")), but(recent_ads=None)])
    table = impression_rules(tiny_settings).finish(decoded.table)
    assert table["recent_ads"].to_pylist() == [["a", "b", "c"], None]
    assert table.schema == impression_schema(tiny_settings)


def test_bad_events_in_a_large_batch_are_found_one_by_one(tiny_settings: Settings) -> None:
    values: list[bytes | None] = [but(impression_id=f"i-{i}") for i in range(2000)]
    expected = {}
    for place, (value, reason) in enumerate(BAD):
        values[place * 43 + 11] = value
        expected[place * 43 + 11] = reason
    decoded = impressions(tiny_settings, values)
    assert reasons(decoded) == expected
    kept = [i for i in range(2000) if i not in expected]
    assert decoded.table["offset"].to_pylist() == [100 + i for i in kept]
    assert decoded.table["impression_id"].to_pylist() == [f"i-{i}" for i in kept]


PIECES = [
    *(b'{ } [ ] , : null true 1 NaN - \\ "'.split()),
    *(b'" ', b"\n", b"\0", b"\xff", b"{}", b'"a"', b'"price":', b'"domain":"feed"', WIRE),
]
MUTANTS = st.builds(
    lambda at, cut, piece: WIRE[:at] + piece + WIRE[at + cut :],
    st.integers(0, len(WIRE)),
    st.integers(0, 20),
    st.sampled_from(PIECES),
)
BRACED = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda x: b"{" + b"".join(x) + b"}")
ANY = st.one_of(st.binary(max_size=40), MUTANTS, BRACED, st.just(WIRE), st.none())
CONFIG = Settings.model_validate(
    {
        "domains": ["feed"],
        "features": [
            {"name": "price", "kind": "numeric"},
            {"name": "recent_ads", "kind": "sequence"},
        ],
        "tasks": [{"name": "click", "window_s": 1}],
        "students": [{"name": "one", "tasks": ["click"]}],
    }
)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(ANY, max_size=6))
@example(values=[WIRE + WIRE, WIRE[:-1], b"," + WIRE[1:]])
@example(values=[WIRE + WIRE, b"{}\0}", b"{}"])
def test_any_bytes_are_rows_or_rejected_whatever_stands_beside_them(
    values: list[bytes | None],
) -> None:
    decoded = impressions(CONFIG, values)
    alone = [impressions(CONFIG, [value]) for value in values]
    assert reasons(decoded) == {i: r.reason for i, a in enumerate(alone) for r in a.rejected}
    for rejected in decoded.rejected:
        assert rejected.value == values[(rejected.message.offset() or 0) - 100]
    offsets = decoded.table["offset"].to_pylist()
    assert sorted([*offsets, *(100 + i for i in reasons(decoded))]) == [
        100 + i for i in range(len(values))
    ]
    for row in decoded.table.to_pylist():
        plain = json.loads(values[row["offset"] - 100] or b"")
        assert (row["impression_id"], row["ts_ms"]) == (plain["impression_id"], plain["ts_ms"])


@settings(max_examples=300, deadline=None)
@given(values=st.lists(ANY.map(lambda value: (value or b"").replace(b"\n", b" ")), max_size=6))
@example(values=[])
@example(values=[WIRE, WIRE])
@example(values=[b"", WIRE])
@example(values=[b'{"price":1', b'{"price":2}}'])
@example(values=[b'{"price":1}', b"null"])
def test_lines_are_read_as_the_messages_they_hold(values: list[bytes]) -> None:
    reader = JsonReader(impression_rules(CONFIG).schema)
    lines = b"".join(value + b"\n" for value in values)
    assert reader.parse_lines(lines) == reader.parse(values)
    if values and values[-1]:
        assert reader.parse_lines(lines[:-1]) == reader.parse(values)


def test_labels_name_their_task_by_position(tiny_settings: Settings) -> None:
    label = {"impression_id": "i", "task": "conversion", "value": 1, "ts_ms": 1_700_000_000_000}
    bad = {"task": "buy", "value": 2, "ts_ms": 0}
    values = [json.dumps(label).encode()]
    values += [json.dumps({**label, name: value}).encode() for name, value in bad.items()]
    values += [json.dumps({**label, "value": value}).encode() for value in (300, True, None)]
    decoded = labels(tiny_settings, values)
    table = label_rules(tiny_settings).finish(decoded.table)
    assert table.select(["task", "value"]).to_pylist() == [{"task": 1, "value": 1}]
    assert reasons(decoded) == {
        1: "unknown_task",
        2: "label_not_0_or_1",
        3: "ts_out_of_range",
        4: "wrong_type",
        5: "wrong_type",
        6: "missing_field",
    }


@pytest.mark.parametrize("form", ["avro", "protobuf"])
def test_rules_hold_for_events_of_a_registered_schema(tiny_settings: Settings, form: Any) -> None:
    label = {"impression_id": "i", "task": "click", "value": 1, "ts_ms": 1_700_000_000_000}
    bad = {"impression_id": "", "task": "buy", "value": 2, "ts_ms": 0}
    rules, registry = label_rules(tiny_settings), SchemaRegistry(url=f"mock://decoding-{form}")
    table = pa.Table.from_pylist([label, *({**label, k: v} for k, v in bad.items())], rules.schema)
    values = FramedEvents(form, rules.schema, "Label", "t", connect(registry)).write(table)
    decoder = EventDecoder(rules.schema, form, rules.faults, registry)
    decoded = decoder.decode(messages([*values, b"junk"]))
    assert rules.finish(decoded.table)["task"].to_pylist() == [0]
    assert reasons(decoded) == {
        1: "empty_id",
        2: "unknown_task",
        3: "label_not_0_or_1",
        4: "ts_out_of_range",
        5: "not_framed",
    }
    by_offset = sorted(decoded.rejected, key=lambda r: r.message.offset() or 0)
    assert [(r.value, r.index) for r in by_offset] == [(v, None) for v in (*values[1:], b"junk")]


def stream(table: pa.Table, codec: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def rows(*changes: dict[str, Any]) -> pa.Table:
    schema = pa.schema([*impression_rules(CONFIG).schema])
    loose = pa.schema([field.with_nullable(True) for field in schema])
    return pa.Table.from_pylist([{**GOOD, **change} for change in changes], schema=loose)


LONG = "x" * (MAX_EVENT_BYTES - len("i-1feed"))
LARGE: list[dict[str, Any]] = [
    {"device": LONG + "x"},
    {"device": LONG, "recent_ads": [""]},
    {"device": "", "recent_ads": ["x" * 1000] * 523},
    {"device": "", "recent_ads": [""] * (MAX_EVENT_BYTES // 4)},
    {"impression_id": "x" * MAX_EVENT_BYTES},
    {"domain": LONG + "search"},
]


@pytest.mark.parametrize("form", ["json", "arrow", "avro", "protobuf"])
def test_event_that_could_not_be_written_on_is_rejected_alone(
    tiny_settings: Settings, form: Any
) -> None:
    small: dict[str, Any] = dict.fromkeys(("device", "user_id", "price", "p_click"))
    small["recent_ads"] = []
    fits: list[dict[str, Any]] = [{"device": LONG}, {"recent_ads": ["x" * 1000] * 500}]
    events = [{**GOOD, **small, **change} for change in ({}, *LARGE, *fits)]
    rules, registry = impression_rules(tiny_settings), SchemaRegistry(url=f"mock://large-{form}")
    table = pa.Table.from_pylist(events, schema=rules.schema)
    if form == "json":
        values = json_events(table)
    elif form == "arrow":
        values = [stream(table.slice(i, 1)) for i in range(len(table))]
    else:
        values = FramedEvents(form, rules.schema, "I", "t", connect(registry)).write(table)
    decoder = EventDecoder(rules.schema, form, rules.faults, registry)
    decoded = decoder.decode(messages(values))
    assert reasons(decoded) == dict.fromkeys(range(1, 1 + len(LARGE)), "too_large")
    assert decoded.table["offset"].to_pylist() == [100, 107, 108]


def test_row_that_is_large_once_unpacked_is_rejected_alone() -> None:
    message = stream(rows({}, {"recent_ads": ["x" * 20_000_000]}, {"domain": "mail"}, {}), "zstd")
    assert len(message) < 5000
    decoded = impressions(CONFIG, [message], "arrow")
    found = {r.index: (r.reason, len(r.value or b"") > 20_000_000) for r in decoded.rejected}
    assert found == {1: ("too_large", True), 2: ("unknown_domain", False)}
    assert decoded.table["index"].to_pylist() == [0, 3]


TEXT = st.text("xé", max_size=6)
SOME = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.none() | TEXT,
            "b": st.none() | st.lists(st.none() | TEXT, max_size=4),
            "c": st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4),
            "d": st.integers(0, 9),
        }
    ),
    max_size=8,
)
SIZED = pa.schema(
    [
        pa.field("a", pa.string()),
        pa.field("b", pa.list_(pa.string())),
        pa.field("c", pa.list_(pa.int64())),
        pa.field("d", pa.int32()),
    ]
)


@settings(max_examples=200, deadline=None)
@given(first=SOME, second=SOME, most=st.integers(0, 60), skip=st.integers(0, 3))
def test_larger_rows_are_those_whose_values_sum_up_to_more(
    first: list[dict[str, Any]], second: list[dict[str, Any]], most: int, skip: int
) -> None:
    parts = [pa.Table.from_pylist(part, schema=SIZED) for part in (first, second)]
    table = pa.concat_tables(parts).slice(skip)
    sizes = [
        len((row["a"] or "").encode())
        + sum(4 + len((text or "").encode()) for text in row["b"] or ())
        + 8 * len(row["c"] or ())
        for row in (first + second)[skip:]
    ]
    found = larger(table, most)
    assert [size > most for size in sizes] == (
        [False] * len(sizes) if found is None else found.tolist()
    )


def test_arrow_rows_are_rejected_one_by_one() -> None:
    table = rows({}, {"impression_id": None}, {"domain": "mail"}, {"impression_id": "last"})
    decoded = impressions(CONFIG, [stream(table), b"junk", stream(rows({}))], "arrow")
    assert decoded.table.select(["impression_id", "offset", "index"]).to_pylist() == [
        {"impression_id": "i-1", "offset": 100, "index": 0},
        {"impression_id": "last", "offset": 100, "index": 3},
        {"impression_id": "i-1", "offset": 102, "index": 0},
    ]
    found = {(r.index, r.reason): r.value for r in decoded.rejected}
    assert found == {
        (None, "not_arrow"): b"junk",
        (1, "missing_field"): one_row(table, 1),
        (2, "unknown_domain"): one_row(table, 2),
    }


def test_arrow_columns_may_have_other_widths_and_be_absent() -> None:
    frame = pl.DataFrame({name: [GOOD[name]] for name in ("domain", "impression_id", "ts_ms")})
    table = frame.to_arrow()
    decoded = impressions(CONFIG, [stream(table)], "arrow")
    assert decoded.rejected == []
    assert decoded.table.to_pylist()[0]["price"] is None


@pytest.mark.parametrize(
    ("name", "values", "seen"),
    [
        ("price", pa.nulls(2), [None, None]),
        ("price", pa.array([1, 2**24 + 1]), [1.0, 2.0**24]),
        ("price", pa.array([1, None], pa.uint8()), [1.0, None]),
        ("price", pa.array([3, 3]).dictionary_encode(), [3.0, 3.0]),
        ("recent_ads", pa.nulls(2), [None, None]),
        ("recent_ads", pa.array([[], [None]]), [[], [None]]),
        ("recent_ads", pa.array([None, []], pa.large_list(pa.null())), [None, []]),
        ("ts_ms", pa.array([GOOD["ts_ms"]] * 2, pa.timestamp("ms")), [GOOD["ts_ms"]] * 2),
        ("ts_ms", pa.array([GOOD["ts_ms"] * 1000 + 999] * 2, pa.timestamp("us", "UTC")), None),
        ("ts_ms", pa.array([GOOD["ts_ms"] // 1000] * 2, pa.timestamp("s")), None),
    ],
)
def test_arrow_column_may_be_of_any_type_that_agrees(name: str, values: Any, seen: Any) -> None:
    table = rows({}, {})
    table = table.set_column(table.schema.get_field_index(name), name, values)
    decoded = impressions(CONFIG, [stream(table)], "arrow")
    assert decoded.rejected == []
    assert decoded.table[name].to_pylist() == (seen or [GOOD["ts_ms"]] * 2)


def test_arrow_message_that_goes_on_behind_its_end_is_rejected_whole() -> None:
    one = stream(rows({}))
    values = [one + one, one + b"\0", one]
    decoded = impressions(CONFIG, values, "arrow")
    assert reasons(decoded) == {0: "not_arrow", 1: "not_arrow"}
    assert [r.value for r in decoded.rejected] == values[:2]
    assert decoded.table["offset"].to_pylist() == [102]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (rows({}).drop_columns(["domain"]), "missing_field"),
        (rows({}).set_column(3, "price", pa.array([0], pa.timestamp("ms"))), "wrong_type"),
        (rows({}).set_column(2, "ts_ms", pa.array([1.7e12])), "wrong_type"),
        (rows({}).set_column(2, "ts_ms", pa.array([2**60], pa.timestamp("s"))), "wrong_type"),
        (rows({}).append_column("domain", pa.array(["feed"])), "duplicate_field"),
        (rows({}).set_column(2, "ts_ms", pa.array(["1"])), "wrong_type"),
        (rows({}).set_column(2, "ts_ms", pa.array([2**64 - 1], pa.uint64())), "wrong_type"),
    ],
)
def test_arrow_message_of_other_columns_is_rejected_whole(table: pa.Table, reason: str) -> None:
    value = stream(table)
    (rejected,) = impressions(CONFIG, [value], "arrow").rejected
    assert (rejected.reason, rejected.value, rejected.index) == (reason, value, None)


ARROW = stream(rows({}, {"impression_id": "second"}))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(ARROW) - 1), byte=st.integers(0, 255), end=st.integers(0, len(ARROW)))
def test_damaged_arrow_message_never_stops_decoding(at: int, byte: int, end: int) -> None:
    damaged = (ARROW[:at] + bytes([byte]) + ARROW[at + 1 :])[: max(end, at)]
    decoded = impressions(CONFIG, [damaged, ARROW], "arrow")
    assert decoded.table["offset"].to_pylist()[-2:] == [101, 101]
    for rejected in decoded.rejected:
        assert rejected.index is not None or rejected.value == damaged
