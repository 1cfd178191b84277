"""Encoding against the definition, one value at a time in plain Python."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from models.encoding import NUMERIC_LIMIT, Encoder, Inputs
from models.hashing import NULL_HASH
from models.schema import Encoding, Feature

ROWS = 1000
ENCODING = Encoding(
    features=(
        Feature(name="domain", kind="categorical"),
        Feature(name="user", kind="categorical", dtype="int"),
        Feature(name="history", kind="sequence", max_length=3),
        Feature(name="visits", kind="sequence", dtype="int", max_length=2),
        Feature(name="age", kind="numeric"),
        Feature(name="count", kind="numeric", transform="log1p"),
    ),
    crosses=(("domain", "user"),),
    table_rows=ROWS,
)
TABLE = pa.table(
    {
        "count": pa.array([-1.0, 1e30, None], pa.float32()),
        "domain": ["feed", None, ""],
        "user": pa.array([1, None, -1], pa.int64()),
        "history": pa.array([["a", "b", "c", "d"], None, ["a", None]], pa.list_(pa.string())),
        "visits": pa.array([[7], [], [7, 8, 9]], pa.list_(pa.int64())),
        "age": pa.array([math.nan, -1e30, 2.5], pa.float32()),
        "ignored": [1, 2, 3],
    }
)
MASK = 2**64 - 1


def mix(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_hash(value: str | int | None) -> int:
    if value is None:
        return int(NULL_HASH)
    return mix(value & MASK) if isinstance(value, int) else xxhash.xxh64_intdigest(value.encode())


def plain_row(name: str, hashed: int) -> int:
    return mix(hashed ^ xxhash.xxh64_intdigest(name.encode(), seed=1)) % ROWS


def plain_cross(left: int, right: int) -> int:
    return mix((left * 0x9DDFEA08EB382D69 + right) & MASK)


def equal(left: Inputs, right: Inputs) -> bool:
    return (
        np.array_equal(left.ids_BF, right.ids_BF)
        and np.array_equal(left.sequence_BL, right.sequence_BL)
        and np.array_equal(left.numeric_BN, right.numeric_BN)
    )


def test_ids_follow_the_definition() -> None:
    inputs = Encoder(ENCODING).encode(TABLE)
    for row, (domain, user) in enumerate([("feed", 1), (None, None), ("", -1)]):
        left, right = plain_hash(domain), plain_hash(user)
        assert inputs.ids_BF[row].tolist() == [
            plain_row("domain", left),
            plain_row("user", right),
            plain_row("domain*user", plain_cross(left, right)),
        ]


def test_sequences_are_truncated_and_padded() -> None:
    inputs = Encoder(ENCODING).encode(TABLE)
    a, b, c = (plain_row("history", plain_hash(x)) for x in "abc")
    seven, eight = (plain_row("visits", plain_hash(x)) for x in (7, 8))
    assert inputs.sequence_BL.tolist() == [
        [a, b, c, seven, ROWS],
        [ROWS] * 5,
        [a, ROWS, ROWS, seven, eight],
    ]


def test_numeric_values_are_finite_and_bounded() -> None:
    inputs = Encoder(ENCODING).encode(TABLE)
    expected = [[0, -math.log(2)], [-NUMERIC_LIMIT, math.log1p(1e30)], [2.5, 0]]
    assert inputs.numeric_BN == pytest.approx(np.array(expected, dtype=np.float32))
    assert inputs.numeric_BN.dtype == np.float32


def test_encoding_does_not_depend_on_chunks_or_slices() -> None:
    encoder = Encoder(ENCODING)
    whole = encoder.encode(TABLE)
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert equal(encoder.encode(chunked), whole)
    parts = [encoder.encode(TABLE.slice(i, 1)) for i in range(3)]
    assert equal(Inputs.concat(parts), whole)
    assert equal(whole.take(np.array([2, 0])), Inputs.concat([parts[2], parts[0]]))


def test_encoding_of_other_arrow_types_is_the_same() -> None:
    other = TABLE.set_column(1, "domain", TABLE["domain"].cast(pa.large_string()))
    other = other.set_column(2, "user", TABLE["user"].cast(pa.int32()))
    other = other.set_column(3, "history", TABLE["history"].cast(pa.large_list(pa.large_string())))
    assert equal(Encoder(ENCODING).encode(other), Encoder(ENCODING).encode(TABLE))


@pytest.mark.parametrize("table", [TABLE.slice(0, 0), TABLE.schema.empty_table()])
def test_no_impressions_encode_to_empty_arrays(table: pa.Table) -> None:
    inputs = Encoder(ENCODING).encode(table)
    shapes = inputs.ids_BF.shape, inputs.sequence_BL.shape, inputs.numeric_BN.shape
    assert shapes == ((0, 3), (0, 5), (0, 2))


def test_all_nulls_encode() -> None:
    nulls = pa.table({f.name: pa.nulls(2) for f in ENCODING.features})
    inputs = Encoder(ENCODING).encode(nulls)
    assert inputs.ids_BF[0, 0] == plain_row("domain", plain_hash(None))
    assert (inputs.sequence_BL == ROWS).all()


def test_rows_of_many_ids_spread_over_the_table() -> None:
    encoding = Encoding(features=(Feature(name="user", kind="categorical", dtype="int"),))
    inputs = Encoder(encoding).encode(pa.table({"user": np.arange(100_000)}))
    counts = np.bincount(inputs.ids_BF[:, 0], minlength=encoding.table_rows)
    assert inputs.ids_BF.min() >= 0
    assert len(counts) == encoding.table_rows
    assert counts.max() < 15  # Poisson of mean 1.5


def test_missing_column_is_named() -> None:
    with pytest.raises(KeyError, match="column 'user' is missing"):
        Encoder(ENCODING).encode(TABLE.drop_columns(["user"]))


def test_cross_of_a_numeric_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="crosses: 'age' is not a categorical feature"):
        Encoder(ENCODING.model_copy(update={"crosses": (("domain", "age"),)}))


def test_encoding_needs_no_torch() -> None:
    code = "import sys, models.encoding, models.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
