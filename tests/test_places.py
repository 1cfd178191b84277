"""Rows found by place, dense or scattered, against a dict."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flows.join.places import Places
from flows.records import ADDRESS

NEAR = st.tuples(st.integers(0, 3), st.integers(1000, 1040), st.integers(0, 2))
FAR = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**62), st.integers(0, 2**31 - 1))
LISTS = st.one_of(st.lists(NEAR), st.lists(st.one_of(NEAR, FAR)))
Place = tuple[int, int, int]


def table(places: list[Place]) -> pa.Table:
    columns = zip(*places, strict=True) if places else ((), (), ())
    arrays = [pa.array(c, f.type) for c, f in zip(columns, ADDRESS, strict=True)]
    return pa.table(arrays, schema=pa.schema(ADDRESS))


@given(LISTS, LISTS)
def test_first_row_of_a_place_is_found(known: list[Place], asked: list[Place]) -> None:
    first: dict[Place, int] = {}
    for row, place in enumerate(known):
        first.setdefault(place, row)
    places = Places(table(known))
    for wanted in (asked, known):
        assert places.find(table(wanted)).tolist() == [first.get(p, -1) for p in wanted]
    assert places.num_distinct == len(first)
