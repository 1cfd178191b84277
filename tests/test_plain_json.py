"""The compiled reader of plain JSON agrees with the full parser, or leaves the lines to it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.events import json_events, plain_json, words
from flows.events.compiling import Kept
from flows.events.json_events import JsonReader
from flows.events.plain_json import BEFORE, PlainJson
from flows.events.words import PADDING

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "a_name_of_some_length": pa.string(),
        "ts_ms": pa.int64(),
        "value": pa.int8(),
        "price": pa.float32(),
        "p": pa.float64(),
        "ads": pa.list_(pa.int64()),
        "words": pa.list_(pa.string()),
    }
)
NAMES = [*SCHEMA.names, "unknown", "ts", "a_name_of_some_lengths", "é"]

TEXTS = st.text(max_size=20)
INTEGERS = st.one_of(
    st.integers(-200, 200), st.integers(-(2**63), 2**64), st.integers(0, 20).map(lambda k: 10**k)
)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1000, 1000).map(lambda x: round(x, 3)),
    st.integers(60, 120).map(lambda power: Decimal(2**power)),
)
SCALARS = st.one_of(
    TEXTS, INTEGERS, st.floats(allow_nan=False, allow_infinity=False), st.none(), st.booleans()
)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "id": TEXTS,
    "a_name_of_some_length": TEXTS,
    "ts_ms": INTEGERS,
    "value": st.integers(-130, 130),
    "price": FLOATS,
    "p": FLOATS,
    "ads": st.lists(INTEGERS, max_size=4),
    "words": st.lists(TEXTS, max_size=4),
}
FIELDS = st.one_of(
    *(st.tuples(st.just(name), values) for name, values in FITTING.items()),
    *(st.tuples(st.just(name), st.none()) for name in FITTING),
    st.tuples(st.sampled_from(NAMES), st.one_of(SCALARS, st.lists(SCALARS, max_size=3))),
)


def written(value: Any, **options: Any) -> str:
    """JSON; of a Decimal all digits and a point, as some writers have it."""
    return f"{value}.0" if isinstance(value, Decimal) else json.dumps(value, **options)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """An object as writers write it, at times with a field twice or a few bytes damaged."""
    fields = draw(st.lists(FIELDS, max_size=8, unique_by=lambda field: field[0]))
    if draw(st.integers(0, 9)) == 0:
        fields += draw(st.lists(FIELDS, max_size=2))
    colon, comma = draw(st.sampled_from([(":", ","), (": ", ", "), (" :  ", " , "), (":\t", ",")]))
    is_ascii = draw(st.booleans())
    pairs = [
        json.dumps(name, ensure_ascii=is_ascii)
        + colon
        + written(value, ensure_ascii=is_ascii, separators=(comma, colon))
        for name, value in fields
    ]
    wire = ("{" + comma.join(pairs) + "}").encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0 and wire:
        at = draw(st.integers(0, len(wire) - 1))
        put = draw(st.sampled_from([b"", b"0", b"-", b".", b"e", b'"', b"\\", b",", b" ", b"\xff"]))
        wire = wire[:at] + put + wire[at + draw(st.integers(0, 1)) :]
    return wire


def framed(lines: Sequence[bytes]) -> bytes:
    return b"\n".join((BEFORE[:-1], *lines, PADDING))


def plain(lines: Sequence[bytes], schema: pa.Schema = SCHEMA) -> pa.Table | None:
    """None if any line is not."""
    read = PlainJson(schema).read(framed(lines), len(lines))
    return None if read is None or not read[1].all() else read[0]


class _FullReader(JsonReader):
    """Without the compiled pass."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._parse = self._parse_all  # type: ignore[method-assign]


def same_bits(a: pa.Table, b: pa.Table) -> bool:
    """Equal, and the sign of zeros too."""
    floats = [
        np.array_equal(np.signbit(a[name].fill_null(0)), np.signbit(b[name].fill_null(0)))
        for name in ("price", "p")
    ]
    return bool(a.equals(b) and all(floats))


@settings(max_examples=500, deadline=None)
@given(values=st.lists(messages(), max_size=5))
@example(values=[b'{"id":"\\ud83d\\ude00\\u00e9\\n\\/"}', b'{"id":"\\ud83d"}'])
@example(values=[b'{"price":-0.0,"p":-0}', b"{}", b"{ }"])
@example(values=[b'{"unknown":{"id":"x"}}', b'{"unknown":"}{","id":"y"}'])
def test_agrees_with_the_full_parser(values: list[bytes]) -> None:
    found, bad = JsonReader(SCHEMA).parse(values)
    expected, expected_bad = _FullReader(SCHEMA).parse(values)
    assert bad == expected_bad
    assert same_bits(found, expected)


@settings(max_examples=300, deadline=None)
@given(value=messages())
def test_what_is_read_is_what_the_full_parser_reads(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError:
        return
    if (table := plain([value])) is not None:
        expected, bad = _FullReader(SCHEMA).parse([value])
        assert not bad
        assert same_bits(table, expected)


PLAIN: dict[str, Any] = {
    "id": 'quo"te \\ / é €',
    "a_name_of_some_length": "",
    "ts_ms": 1_700_000_000_000,
    "value": -128,
    "price": 0.30000001192092896,
    "p": 2.5e-7,
    "ads": [1, -2, 999_999_999_999_999_999],
    "words": ["x" * 7, "y" * 8, "", "😀"],
}


@pytest.mark.parametrize(
    "wire",
    [
        json.dumps(PLAIN),
        json.dumps(PLAIN, separators=(",", ":")),
        json.dumps(PLAIN, ensure_ascii=False),
        json.dumps(dict(reversed(PLAIN.items()))),
        json.dumps({"before": 1.5e3, **PLAIN, "behind": "x", "is": True, "not": False, "no": None}),
        json.dumps({**PLAIN, **dict.fromkeys(["id", "price", "ads", "words", "value"])}),
        json.dumps({"ts_ms": 0}),
        "{}",
    ],
)
def test_what_writers_write_is_plain(wire: str) -> None:
    table = plain([wire.encode(), b'{"id":"next"}', wire.encode()])
    assert table is not None
    row = {name: json.loads(wire).get(name) for name in SCHEMA.names}
    if row["price"] is not None:
        row["price"] = float(np.float32(row["price"]))
    assert table.slice(0, 1).to_pylist() == table.slice(2, 1).to_pylist() == [row]


@pytest.mark.parametrize(
    "line",
    [
        b'{"ts_ms":"1"}',
        b'{"ts_ms":1.0}',
        b'{"ts_ms":1e3}',
        b'{"ts_ms":01}',
        b'{"ts_ms":-0}',
        b'{"ts_ms":1,"ts_ms":1}',
        b'{"value":128}',
        b'{"value":true}',
        b'{"ts_ms":1234567890123456789}',
        b'{"price":"1"}',
        b'{"price":.5}',
        b'{"price":1.}',
        b'{"price":1e}',
        b'{"price":1e39}',
        b'{"price":NaN}',
        b'{"p":0.12345678901234567890}',
        b'{"p":1e70}',
        b'{"p":9007199254740993}',
        b'{"p":0.0e}',
        b'{"price":00.5}',
        b'{"p":18446744073709551616.5}',
        b'{"price":36893488147419103232.0}',
        b'{"p":10000000000000000303786028427003666890752.0}',
        b'{"ads":[1,]}',
        b'{"ads":[1 2]}',
        b'{"ads":[null]}',
        b'{"ads":[1',
        b'{"words":["a"',
        b'{"id":"a\\u12"}',
        b'{"id":"\\u0000"}',
        b'{"id":"\\udc00"}',
        b'{"id":"\\ud800\\u0041"}',
        b'{"id":"\\x"}',
        b'{"id":"a\tb"}',
        b'{"id":nul}',
        b'{"unknown":[1]}',
        b'{"unknown":tru}',
        b'{"un\\u006bnown":1}',
        b'{"id":"a"},',
        b'{"id":"a"',
        b'{"id"}',
        b'{"id":',
        b'{"id',
        b"{",
        b"{,}",
        b'{"id":"a",}',
        b'{"id":"a"} ',
        b' {"id":"a"}',
        b'{"id":"a"}{"id":"b"}',
        b"",
    ],
)
def test_what_is_wrong_or_rare_is_left_to_the_full_parser(line: bytes) -> None:
    good = b'{"id":"good","ads":[1,2],"words":["a"]}'
    read = PlainJson(SCHEMA).read(framed([good, line, good, line, line]), 5)
    assert read is not None
    assert read[1].tolist() == [True, False, True, False, False]
    assert read[0].take([0]) == read[0].take([2]) == plain([good])
    nothing = [dict.fromkeys(SCHEMA.names)]
    assert [read[0].take([i]).to_pylist() for i in (1, 3, 4)] == [nothing] * 3


def test_another_number_of_lines_is_not_read() -> None:
    good = b'{"id":"good"}'
    assert PlainJson(SCHEMA).read(framed([good, good]), 1) is None
    assert PlainJson(SCHEMA).read(framed([good, good]), 3) is None


@settings(max_examples=2000, deadline=None)
@given(
    digits=st.integers(0, 10**19),
    power=st.integers(-25, 12),
    near=st.one_of(st.none(), st.floats(2**-20, 2**20, width=32)),
    step=st.integers(-2, 2),
)
def test_numbers_are_the_nearest_floats(
    digits: int, power: int, near: float | None, step: int
) -> None:
    text = f"{digits}e{power}"
    if near is not None:  # beside the middle between two float32, which is hardest
        above = struct.unpack("<f", struct.pack("<I", bits(near) + 1))[0]
        middle = (Decimal(near) + Decimal(above)) / 2
        text = f"{middle.quantize(Decimal('1e-14')) + Decimal(step) * Decimal('1e-14'):f}"
    for name, kind in (("price", np.float32), ("p", np.float64)):
        if (table := plain([f'{{"{name}":{text}}}'.encode()])) is None:
            continue
        found = kind(table[name][0].as_py())
        away = abs(Fraction(float(found)) - Fraction(text))
        for other in (np.nextafter(found, kind(np.inf)), np.nextafter(found, kind(-np.inf))):
            assert away <= abs(Fraction(float(other)) - Fraction(text))


@settings(max_examples=2000, deadline=None)
@given(
    value=st.one_of(
        st.floats(1e-30, 1e15),  # beyond 2**53 may be in the very middle of two
        st.floats(1e-9, 1),
        st.floats(2**-90, 2**49, width=32),
    )
)
def test_what_python_writes_of_a_float_is_plain(value: float) -> None:
    single = -float(np.float32(value))
    table = plain([f'{{"p":{value!r},"price":{single!r}}}'.encode()])
    assert table is not None
    assert table.select(["p", "price"]).to_pylist() == [{"p": value, "price": single}]


@settings(max_examples=1000, deadline=None)
@given(value=st.floats(1e-20, 1e20), step=st.integers(-1, 1))
def test_numbers_beside_the_middle_of_two_floats_are_not_mistaken(value: float, step: int) -> None:
    middle = (Decimal(value) + Decimal(float(np.nextafter(value, np.inf)))) / 2
    _, digits, exponent = Context(prec=18).create_decimal(middle).as_tuple()
    text = f"{int(''.join(map(str, digits))) + step}e{exponent}"
    if (table := plain([f'{{"p":{text}}}'.encode()])) is not None:
        assert table["p"][0].as_py() == float(text)


def bits(value: float) -> int:
    """Of a float32."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def test_any_order_and_number_of_columns_is_read() -> None:
    names = [f"column_{c}" for c in range(40)]
    schema = pa.schema(dict.fromkeys(names, pa.int64()))
    rows = [{name: r for name in names[r:] + names[:r]} for r in range(40)]
    table = plain([json.dumps(row).encode() for row in rows], schema)
    assert table is not None
    assert table.to_pylist() == [dict.fromkeys(names, r) for r in range(40)]


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema({"t": pa.bool_()}),
        pa.schema([]),
        pa.schema([("a", pa.int64()), ("a", pa.int64())]),
        *(
            pa.schema({name: pa.int64()})
            for name in ('a"', 'a":1,"b', "a\\", "a\\nb", "a\nb", "\0")
        ),
    ],
)
def test_other_columns_are_left_to_the_full_parser(schema: pa.Schema) -> None:
    lines = [b'{"t":true}', b'{"a":1,"b":2}', b'{"a"":1}', b'{"a\\":1}', b'{"a\\nb":1}', b'{"']
    for line in lines:
        assert plain([line], schema) is None


def test_long_messages_are_read_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [json.dumps({"id": str(i), "unknown": "x" * 3000}).encode() for i in range(50)]
    expected = JsonReader(SCHEMA).parse(values)
    monkeypatch.setattr(json_events, "BYTES_AT_ONCE", 10_000)
    monkeypatch.setattr(plain_json, "KEPT_SCRATCH", 1000)
    assert JsonReader(SCHEMA).parse(values) == expected
    monkeypatch.setattr(plain_json, "MOST_SCRATCH", 10_000)
    assert plain(values[:1]) is None
    assert JsonReader(SCHEMA).parse(values) == expected
    assert expected[0]["id"].to_pylist() == [str(i) for i in range(50)]


def test_columns_do_not_share_memory_with_later_ones() -> None:
    reader = PlainJson(SCHEMA)
    first = reader.read(framed([b'{"id":"first","ads":[1]}']), 1)
    reader.read(framed([b'{"id":"other","ads":[2]}']), 1)
    assert first is not None
    assert first[0].select(["id", "ads"]).to_pylist() == [{"id": "first", "ads": [1]}]


def test_compiles_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/dev/null/nowhere")
    twice = Kept(doubled, ())
    assert twice.folder is None
    assert twice(4) == 8
    assert numba.config.CACHE_DIR == "/dev/null/nowhere"


def test_each_content_of_the_modules_has_its_own_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    here, there = Kept(doubled, ()), Kept(doubled, (words,))
    assert here.folder != there.folder
    assert here(4) == 8
    assert here.folder is not None
    assert there.folder is not None
    assert list(here.folder.rglob("*.nbc"))
    assert not list(there.folder.rglob("*.nbc"))


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 20])
def test_what_was_kept_and_damaged_is_named_and_compiled_anew(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    suffix: str,
    size: int,
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert Kept(doubled, ())(4) == 8
    (path,) = tmp_path.rglob(f"*.{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    again = Kept(doubled, ())
    folder = again.folder
    assert again(4) == again(4) == 8
    assert f"{folder} cannot be used, remove it" in caplog.text


def doubled(value: int) -> int:
    """To be compiled."""
    return 2 * value
