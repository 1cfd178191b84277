"""How fast libraries decode JSON events to columns: python -m benchmarks.das.decoders [--rows N].

Decoders that the project does not use run in an environment of their own below `.cache/peers`. Rows
a CPU second of one thread, the best of several rounds in turn, in batches as a flow reads them.
`msgspec structs` and `orjson dicts` end at Python objects, the others at Arrow columns.

exfm's own reader (flows/events/plain_json.py), with its checks, stands beside them.

Of the libraries pyarrow alone tells a bad event from a good one: it refuses a quoted number, a
fraction in a column of integers and a field that comes twice. arro3-io takes "17" for 17, 1.5 for
1, 01 for 1 and the last of two fields; DuckDB takes 17 for "17" as well, 1.5 for 2, and null for
what does not fit; polars takes the first of two fields, and json_decode 1.5 for 1 and null for what
does not fit.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

BATCH = 16_384
"""Events decoded at a time: `das.max_batch`."""
ROUNDS = 5
LIMIT_S = 600.0
ENVIRONMENT = "decoders"

Decode = Callable[[Sequence[bytes]], Any]


def measure(lines: list[bytes], schema: pa.Schema) -> dict[str, float]:
    """Rows per CPU second of each decoder that is installed."""
    pa.set_cpu_count(1)
    decoders: dict[str, Decode] = {}
    for name, make in MAKERS.items():
        try:
            decoders[name] = make(schema)
        except ImportError:
            continue
    best = dict.fromkeys(decoders, 0.0)
    for _ in range(ROUNDS):
        for name, decode in decoders.items():
            decode(lines[:BATCH])
            begin_s = time.process_time()
            for start in range(0, len(lines), BATCH):
                decode(lines[start : start + BATCH])
            best[name] = max(best[name], len(lines) / (time.process_time() - begin_s))
    return best


def pyarrow_json(schema: pa.Schema) -> Decode:
    """What the flows use for messages that are not plain, without their checks."""
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def decode(lines: Sequence[bytes]) -> pa.Table:
        data = b"\n".join(lines)
        reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        return pa.json.read_json(pa.BufferReader(data), reading, options)

    return decode


def polars_ndjson(schema: pa.Schema) -> Decode:
    """polars, all lines as one file."""
    import polars as pl

    columns = pl.DataFrame(pl.from_arrow(schema.empty_table())).schema
    return lambda lines: pl.read_ndjson(b"\n".join(lines), schema=columns).to_arrow()


def polars_column(schema: pa.Schema) -> Decode:
    """polars, a column of messages."""
    import polars as pl

    kind = pl.Struct(pl.DataFrame(pl.from_arrow(schema.empty_table())).schema)

    def decode(lines: Sequence[bytes]) -> pa.Table:
        texts = pl.Series(lines, dtype=pl.Binary).cast(pl.String)
        return texts.str.json_decode(kind).struct.unnest().to_arrow()

    return decode


def arro3_io(schema: pa.Schema) -> Decode:
    """arrow-rs."""
    from arro3.io import read_json

    def decode(lines: Sequence[bytes]) -> pa.Table:
        reader = read_json(io.BytesIO(b"\n".join(lines)), schema=schema, batch_size=len(lines))
        return pa.table(reader.read_all())

    return decode


def duckdb_column(schema: pa.Schema) -> Decode:
    """DuckDB's `from_json` over a column of messages."""
    import duckdb

    connection = duckdb.connect(config={"threads": 1})
    form = json.dumps({field.name: duckdb_type(field.type) for field in schema})

    def decode(lines: Sequence[bytes]) -> pa.Table:
        texts = pa.table({"line": pa.array(lines, pa.binary()).cast(pa.string())})
        query = f"select unnest(from_json(line, '{form}')) from texts"
        assert texts.num_rows  # DuckDB finds the table by its name in this frame
        return connection.sql(query).to_arrow_table()

    return decode


def duckdb_type(kind: pa.DataType) -> Any:
    """Type of a column as `from_json` spells it."""
    if pa.types.is_list(kind):
        return [duckdb_type(kind.value_type)]
    if pa.types.is_string(kind):
        return "VARCHAR"
    names = {pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.float64(): "DOUBLE"}
    return names.get(kind, "INTEGER")


def msgspec_structs(schema: pa.Schema) -> Decode:
    """msgspec, to an object a message, no columns."""
    import msgspec

    kinds = [(field.name, python_type(field.type) | None, None) for field in schema]
    decode = msgspec.json.Decoder(msgspec.defstruct("Event", kinds, gc=False)).decode
    return lambda lines: [decode(line) for line in lines]


def python_type(kind: pa.DataType) -> Any:
    """Python's type of a column's values."""
    if pa.types.is_list(kind):
        return list[python_type(kind.value_type)]  # type: ignore[misc]
    if pa.types.is_string(kind):
        return str
    return int if pa.types.is_integer(kind) else float


def orjson_dicts(schema: pa.Schema) -> Decode:
    """orjson, to a dict a message, no columns."""
    import orjson

    return lambda lines: [orjson.loads(line) for line in lines]


MAKERS: dict[str, Callable[[pa.Schema], Decode]] = {
    "pyarrow": pyarrow_json,
    "polars read_ndjson": polars_ndjson,
    "polars json_decode": polars_column,
    "arro3-io": arro3_io,
    "DuckDB from_json": duckdb_column,
    "msgspec structs": msgspec_structs,
    "orjson dicts": orjson_dicts,
}


def measure_in_environment(lines: Path, schema: pa.Schema) -> dict[str, float]:
    """`measure` of a file of lines, in the decoders' own environment.

    Raises:
        EngineFailed: the environment could not be made.
    """
    from benchmarks.das.environments import python_of

    described = lines.with_suffix(".schema")
    described.write_bytes(schema.serialize())
    command = [python_of(ENVIRONMENT), "-m", "benchmarks.das.decoders", "--lines", lines]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def own_rate(lines: list[bytes], schema: pa.Schema) -> float:
    """Rows per CPU second of the flows' reader.

    Raises:
        RuntimeError: it refused one.
    """
    from flows.events.json_events import JsonReader

    reader = JsonReader(schema)
    best = 0.0
    for _ in range(ROUNDS):
        begin_s = time.process_time()
        for start in range(0, len(lines), BATCH):
            _, bad = reader.parse(lines[start : start + BATCH])
            if bad:
                raise RuntimeError(f"refused: {bad}")
        best = max(best, len(lines) / (time.process_time() - begin_s))
    return best


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; `--lines` is what the decoders' environment is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20 * BATCH)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.lines is not None:
        schema = pa.ipc.read_schema(pa.py_buffer(given.lines.with_suffix(".schema").read_bytes()))
        json.dump(measure(given.lines.read_bytes().splitlines(), schema), sys.stdout)
        return
    from benchmarks.das.environments import PEERS
    from benchmarks.das.events import event_files, settings
    from flows.events.rules import impression_rules

    files = event_files(given.rows, PEERS)
    schema = impression_rules(settings()).schema
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    found = measure_in_environment(files.impressions, nullable)
    found["exfm"] = own_rate(files.impressions.read_bytes().splitlines(), nullable)
    for name, rate in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:20}{rate:12,.0f} rows/s{rate / found['pyarrow']:8.2f}")


if __name__ == "__main__":
    main()
