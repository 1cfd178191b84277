"""What decoding all events would cost by itself, with each decoder that was tried."""

from __future__ import annotations

import subprocess
from itertools import islice
from pathlib import Path

import pyarrow as pa

from benchmarks.das.decoders import measure_in_environment
from benchmarks.das.engine import EngineFailed
from benchmarks.das.events import EventFiles, settings
from flows.events.rules import impression_rules, label_rules
from flows.records import prediction_schema

SAMPLE = 65_536
"""Lines of each kind that the decoders are measured on."""
NO_COLUMNS = ("msgspec structs", "orjson dicts")
"""Decoders that end at an object an event: what follows would cost more than they save."""


def decoding_cpu_s(files: EventFiles, work_folder: Path) -> dict[str, float]:
    """CPU seconds for all events by decoder, of those that end at columns, the fastest first.

    Raises:
        EngineFailed: the decoders could not be installed or run.
    """
    schemas = {
        "impressions": impression_rules(settings()).schema,
        "predictions": prediction_schema(settings()),
        "labels": label_rules(settings()).schema,
    }
    seconds: dict[str, float] = {}
    for kind, schema in schemas.items():
        num = files.num_labels if kind == "labels" else files.num_impressions
        sample = head(getattr(files, kind), work_folder / f"{kind}-sample.jsonl")
        try:
            rates = measure_in_environment(sample, wide(schema))
        except subprocess.SubprocessError as error:
            raise EngineFailed(f"decoders of {kind}: {error}") from error
        for name in rates.keys() - set(NO_COLUMNS):
            seconds[name] = seconds.get(name, 0.0) + num / rates[name]
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def wide(schema: pa.Schema) -> pa.Schema:
    """Nullable columns, integers of 64 bits: not all decoders know smaller ones."""
    kinds = {
        field.name: pa.int64() if pa.types.is_integer(field.type) else field.type
        for field in schema
    }
    return pa.schema(kinds.items())


def head(lines: Path, out: Path) -> Path:
    """The first lines of a file, in a file."""
    with lines.open("rb") as file:
        out.write_bytes(b"".join(islice(file, SAMPLE)))
    return out
