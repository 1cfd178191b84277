"""Feeds damaged messages to a decoder in a process of its own, whose crash is noticed.

    python -m benchmarks.das_soak.fuzz avro --bytes 4000000 --seed 1 [--batch 17]

Every message is a row or set aside byte for byte, for one of few reasons, and whether it is a row
depends on it alone. The process may use little memory beyond what it starts with.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from confluent_kafka import Message

from benchmarks.das_soak.mutation import mutants
from flows.events.decoding import Decoded, EventDecoder
from flows.events.encoding import FramedEvents, arrow_events, json_events
from flows.events.rules import EventRules, impression_rules
from flows.events.schema_registry import connect
from flows.registry_settings import SchemaRegistry
from flows.settings import Format, Settings

FORMATS: tuple[Format, ...] = ("json", "arrow", "avro", "protobuf")
REASONS = {
    *("empty", "not_json", "not_utf8", "not_an_object", "duplicate_field", "missing_field"),
    *("wrong_type", "empty_id", "ts_out_of_range", "unknown_domain", "not_finite"),
    *("not_arrow", "too_large"),
    *("not_framed", "unknown_schema", "schema_mismatch", "not_avro", "not_protobuf"),
}
"""All that an impression may be rejected for, but being late."""
SPARED = {"json": 0, "arrow": 0, "avro": 5, "protobuf": 6}
"""Bytes before an event's own: its schema, which most damage leaves."""
MAX_BATCH = 96
PIECES = (1, 1, 1, 4, 16)
"""Messages of the batches that a batch is compared with."""
MORE_MEMORY = 1 << 30
"""Address space that decoding may take."""
SETTINGS = Settings.model_validate(
    {
        "domains": ["feed", "search"],
        "features": [
            {"name": "user_id", "kind": "categorical", "dtype": "int"},
            {"name": "device", "kind": "categorical"},
            {"name": "price", "kind": "numeric"},
            {"name": "recent", "kind": "sequence"},
            {"name": "seen", "kind": "sequence", "dtype": "int"},
        ],
        "tasks": [{"name": "click", "window_s": 1, "oracle": "p_click"}],
        "students": [{"name": "one", "tasks": ["click"]}],
    }
)
EVENT = {
    "impression_id": "i-1",
    "domain": "feed",
    "ts_ms": 1_700_000_000_000,
    "user_id": -7,
    "device": "phöne",
    "price": 1.5,
    "recent": ["a", "", "\U0001f600"],
    "seen": [1, -(2**40)],
    "p_click": 0.25,
}


@dataclass(kw_only=True, slots=True)
class Fuzzed:
    """What a decoder was given, and what it made of that."""

    messages: int = 0
    bytes: int = 0
    rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Crash(RuntimeError):
    """The process ended; the message says how, and how to see it again."""


class Target:
    """The decoder of one format, and valid messages for it."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._rules: EventRules = impression_rules(SETTINGS)
        self._registry = SchemaRegistry(url=f"mock://fuzz-{form}")
        self.decoder = EventDecoder(self._rules.schema, form, self._rules.faults, self._registry)
        self._framed = (
            FramedEvents(form, self._rules.schema, "Impression", "fuzz", connect(self._registry))
            if form == "avro" or form == "protobuf"
            else None
        )
        others = {"impression_id": "other", "device": None, "recent": [], "seen": list(range(9))}
        bare = {"impression_id": "b", "domain": "search", "ts_ms": EVENT["ts_ms"]}
        bare |= {"recent": [], "seen": []}
        self.corpus = [
            *self.write(self._table(EVENT)),
            *self.write(self._table({**EVENT, **others})),
            *self.write(self._table(bare)),
            *self.write(
                self._table({**EVENT, "recent": [f"advertisement-{i}" for i in range(40)]})
            ),
            *self.write(self._table({**EVENT, "device": "long " * 200})),
            *self.write(self._table(EVENT, {**EVENT, **others}, {**EVENT, "domain": "mail"})),
        ]
        if form == "arrow":
            self.corpus += list(self._odd_streams())

    def write(self, table: pa.Table) -> list[bytes]:
        """Messages of valid rows."""
        if self.form == "json":
            return json_events(table)
        if self._framed is not None:
            return self._framed.write(table)
        return [arrow_events(table)]

    def check(self, values: Sequence[bytes | None], found: Fuzzed, rng: random.Random) -> None:
        """Decode a batch, and compare it with the same messages in other batches, many alone."""
        together = self.decoder.decode(messages(values))
        self._check_sums(together, values)
        cuts = [0]
        while cuts[-1] < len(values):
            cuts.append(cuts[-1] + rng.choice(PIECES))
        pieces = [
            self.decoder.decode(messages(values[start:end], start)) for start, end in pairwise(cuts)
        ]
        assert sorted(faults(together)) == sorted(x for piece in pieces for x in faults(piece))
        rows = pa.concat_tables([piece.table for piece in pieces])
        assert rows.equals(together.table), "rows differ from those of other batches"
        self._check_rows(together.table)
        found.messages += len(values)
        found.bytes += sum(len(value or b"") for value in values)
        found.rows += together.table.num_rows
        for rejected in together.rejected:
            found.reasons[rejected.reason] = found.reasons.get(rejected.reason, 0) + 1

    def _check_sums(self, decoded: Decoded, values: Sequence[bytes | None]) -> None:
        """Each message is rows, or rejected whole; rows of Arrow may be rejected one by one."""
        of_message: list[list[int | None]] = [[] for _ in values]
        for rejected in decoded.rejected:
            offset = rejected.message.offset() or 0
            assert rejected.reason in REASONS, rejected.reason
            of_message[offset].append(rejected.index)
            if rejected.index is None:
                assert rejected.value == values[offset], "not byte for byte"
            else:
                assert pa.ipc.open_stream(rejected.value).read_all().num_rows == 1
        place = decoded.table.select(["offset", "index"])
        for offset, index in zip(*(column.to_pylist() for column in place), strict=True):
            of_message[offset].append(index)
        for value, parts in zip(values, of_message, strict=True):
            if self.form == "arrow" and None not in parts:
                assert sorted(p for p in parts if p is not None) == list(range(len(parts))), value
            else:
                assert len(parts) == 1, value

    def _check_rows(self, table: pa.Table) -> None:
        """Rows are valid, and come back when they are written."""
        table.validate(full=True)
        events = table.select(self._rules.schema.names)
        assert not any(bad_N.any() for _, bad_N in self._rules.faults(events))
        if not table.num_rows or (self.form == "protobuf" and has_null_in_list(events)):
            return
        again = self.decoder.decode(messages(self.write(events.cast(self._rules.schema))))
        assert again.rejected == []
        assert again.table.select(events.column_names).equals(events), "rows change when written"

    def _table(self, *rows: dict[str, object]) -> pa.Table:
        return pa.Table.from_pylist(list(rows), schema=self._rules.schema)

    def _odd_streams(self) -> Iterator[bytes]:
        """Other layouts of the same rows: compressed, dictionaries, views, wider types."""
        table = self._table(EVENT, {**EVENT, "device": None}, EVENT)
        place = table.schema.get_field_index("device")
        for kind in (
            pa.dictionary(pa.int8(), pa.string()),
            pa.large_string(),
            pa.string_view(),
        ):
            yield arrow_events(table.set_column(place, "device", table["device"].cast(kind)))
        for codec in ("lz4", "zstd"):
            sink = pa.BufferOutputStream()
            options = pa.ipc.IpcWriteOptions(compression=codec)
            with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                writer.write_table(table)
                writer.write_table(table)
            yield bytes(sink.getvalue())


def has_null_in_list(table: pa.Table) -> bool:
    """Whether a list holds a null, or is one, for which Protobuf has no bytes."""
    lists = [column.combine_chunks() for column in table if pa.types.is_list(column.type)]
    return any(array.null_count or array.flatten().null_count for array in lists)


def messages(values: Sequence[bytes | None], first: int = 0) -> list[Message]:
    """As they come from a topic; offsets are positions."""
    return [
        Message(topic="t", partition=0, offset=first + i, value=value)
        for i, value in enumerate(values)
    ]


def faults(decoded: Decoded) -> list[tuple[int, int, str]]:
    """Offset, row and reason of what was rejected."""
    return [
        (r.message.offset() or 0, -1 if r.index is None else r.index, r.reason)
        for r in decoded.rejected
    ]


def limit_memory() -> None:
    """Let allocation fail soon, as it does on a small machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def fuzz(form: Format, num_bytes: int, seed: int, only: int | None = None) -> Fuzzed:
    """Check batches until so many bytes were decoded; each is a function of seed and number."""
    target, found = Target(form), Fuzzed()
    limit_memory()
    batch = only or 0
    while found.bytes < num_bytes:
        print(batch, flush=True)
        rng = random.Random(f"{form} {seed} {batch}")
        values = mutants(target.corpus, rng.randint(1, MAX_BATCH), SPARED[form], rng)
        target.check(values, found, rng)
        batch += 1
        if only is not None:
            break
    return found


def fuzz_in_child(form: Format, num_bytes: int, seed: int) -> Fuzzed:
    """The same in a process of its own.

    Raises:
        Crash: it ended.
    """
    command = [sys.executable, "-m", "benchmarks.das_soak.fuzz", form]
    command += [f"--bytes={num_bytes}", f"--seed={seed}"]
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "RUST_BACKTRACE": "0"},
            check=False,
        )
        lines = done.stdout.decode().splitlines()
        if done.returncode:
            said.seek(max(0, said.tell() - 3000))
            again = " ".join([*command[1:], f"--batch={lines[-1] if lines else 0}"])
            words = said.read().decode(errors="replace")
            raise Crash(f"{form}: exit code {done.returncode}; again by: python {again}\n{words}")
    return Fuzzed(**json.loads(lines[-1]))


def main(
    form: Annotated[str, typer.Argument(help=f"One of {', '.join(FORMATS)}.")],
    bytes_: Annotated[int, typer.Option("--bytes", help="To decode at least.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of the damage.")] = 0,
    batch: Annotated[int | None, typer.Option(help="This one only.")] = None,
) -> None:
    """Decode damaged messages of a format; the last line says what was found."""
    faulthandler.enable()
    chosen = [known for known in FORMATS if known == form]
    if not chosen:
        raise typer.BadParameter(f"the format must be one of {', '.join(FORMATS)}, got {form}")
    print(json.dumps(asdict(fuzz(chosen[0], bytes_, seed, batch))))


if __name__ == "__main__":
    typer.run(main)
