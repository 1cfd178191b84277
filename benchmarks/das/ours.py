"""The project's own flow from files to a file: `python -m benchmarks.das.ours --help`.

The flow of flows/das.py with its decoder, its watermarks and its shards; only the ends differ: the
sources read lines of files in place of messages of a broker, the sink appends the messages of
`examples` to a file, each behind its length.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from confluent_kafka import Message

from benchmarks.das.engine import Outcome, one_core, run_engine
from benchmarks.das.events import EventFiles, event_files, settings
from flows.das import build
from flows.das_sources import InputPartition, Item, rows_by_shard
from flows.decoding import EventDecoder
from flows.event_rules import EventRules, impression_rules, label_rules
from flows.json_events import parse
from flows.lateness import Lateness
from flows.read_ahead import ReadAhead
from flows.records import decode, prediction_schema
from flows.runner import Placement, run_flow
from flows.settings import Settings
from flows.sink import Outgoing
from flows.watermarks import TEACHER

LENGTH = struct.Struct("<I")
SHARDS = 1
"""As the peers have one task slot, one thread."""
BLOCK = 3_500_000
"""Bytes read at a time: some 8,192 impressions, what `das.max_batch` is by default."""
EPOCH_S = 3600.0
"""Longer than the job: no snapshot is taken, as the peers take none."""


class FilePartition(InputPartition):
    """Lines of one file, a batch at a time."""

    def __init__(self, settings: Settings, kind: str, path: Path, ahead: ReadAhead) -> None:
        super().__init__(ahead)
        self._kind = kind
        self._source = (TEACHER if kind == "predictions" else kind, 0)
        self._shards = settings.das.shards
        self._lateness = Lateness(0)
        self._schema = prediction_schema(settings)
        self._rules: EventRules | None = None
        if kind != "predictions":
            rules = impression_rules(settings) if kind == "impressions" else label_rules(settings)
            self._rules, self._decoder = rules, EventDecoder(rules.schema, "json", rules.faults)
        self._file = path.open("rb")
        self._offset, self._rest, self._ended = 0, b"", False

    def snapshot(self) -> None:
        """Nothing is kept: the job starts anew."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _has_ended(self) -> bool:
        return self._ended

    def _watermark_ms(self) -> int:
        return self._lateness.watermark_ms

    def _read(self) -> list[Item]:
        block = self._file.read(BLOCK)
        *lines, self._rest = (self._rest + block).split(b"\n")
        rows = self._rows(lines)
        self._offset += len(lines)
        if not self._lateness.judge(rows["ts_ms"].to_numpy()).all():
            raise RuntimeError(f"{self._file.name} must be in the order of event time")
        if not block:
            self._ended = True
            self._lateness.end()
        items = rows_by_shard(self._kind, rows, self._shards)
        mark = self._lateness.watermark_ms
        return items + [(str(s), ("watermark", s, self._source, mark)) for s in range(self._shards)]

    def _rows(self, lines: list[bytes]) -> pa.Table:
        if self._rules is None:
            rows = parse(lines, self._schema)[0].cast(self._schema)
        else:
            decoded = self._decoder.decode(
                [
                    Message(topic=self._kind, partition=0, offset=offset, value=line)
                    for offset, line in enumerate(lines, self._offset)
                ]
            )
            rows = self._rules.finish(decoded.table)
        if rows.num_rows != len(lines):
            raise RuntimeError(
                f"{self._file.name}: {len(lines) - rows.num_rows} lines are no {self._kind}"
            )
        return rows


class FileSource(FixedPartitionedSource[Item, None]):
    """One file as a topic of one partition."""

    def __init__(self, settings: Settings, kind: str, path: Path, ahead: ReadAhead) -> None:
        self._of = (settings, kind, path, ahead)

    def list_parts(self) -> list[str]:
        """The one."""
        return ["0"]

    def build_part(
        self, step_id: str, for_part: str, resume_state: None
    ) -> StatefulSourcePartition[Item, None]:
        """From its beginning."""
        return FilePartition(*self._of)


class FileSink(FixedPartitionedSink[Outgoing, None]):
    """All partitions of `examples` in one file."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self._path = path
        self._parts = [str(p) for p in range(settings.topics.examples.partitions)]

    def list_parts(self) -> list[str]:
        """Partition numbers."""
        return self._parts

    def build_part(
        self, step_id: str, for_part: str, resume_state: None
    ) -> StatefulSinkPartition[Outgoing, None]:
        """A writer that appends."""
        return _Appender(self._path)


class _Appender(StatefulSinkPartition[Outgoing, None]):
    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write_batch(self, values: list[Outgoing]) -> None:
        for _, value, _ in values:
            self._file.write(LENGTH.pack(len(value)) + value)

    def snapshot(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self._file.close()


def join(files: EventFiles, settings: Settings, folder: Path) -> Path:
    """Run the flow over the files.

    Args:
        files: to read.
        settings: of the job.
        folder: empty, for the segments and the examples.

    Returns:
        The file of the examples.
    """
    ahead, out = ReadAhead(settings), folder / "examples"
    inputs = [
        FileSource(settings, "impressions", files.impressions, ahead),
        FileSource(settings, "labels", files.labels, ahead),
        FileSource(settings, "predictions", files.predictions, ahead),
    ]
    flow = build(settings, folder, inputs, FileSink(settings, out), ahead)
    run_flow(flow, Placement(), recovery=None, epoch_s=EPOCH_S)
    return out


def examples(path: Path) -> pa.Table:
    """All rows of a file of examples, as they were written."""
    tables = []
    with path.open("rb") as file:
        while head := file.read(LENGTH.size):
            rows, _ = decode(file.read(*LENGTH.unpack(head)))
            tables.append(rows)
    return pa.concat_tables(tables)


def decode_only(files: EventFiles, settings: Settings) -> None:
    """Read and decode all lines of all files as the flow does, and drop the rows."""
    ahead = ReadAhead(settings)
    for kind in ("impressions", "labels", "predictions"):
        partition = FilePartition(settings, kind, getattr(files, kind), ahead)
        while not partition._has_ended():
            partition._read()
        partition.close()


def run_ours(rows: int, work_folder: Path, *, limit_s: float) -> Outcome:
    """The job in a process of its own, on one core.

    Raises:
        EngineFailed: it failed or was too slow.
    """
    command = [sys.executable, "-m", "benchmarks.das.ours", f"--rows={rows}"]
    return run_engine(
        [*command, f"--work={work_folder}"],
        limit_s=limit_s,
        cores=[one_core()],
        environ={"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Join, count, and print what it took as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args(argv)
    files = event_files(arguments.rows, arguments.work)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        started_s, cpu_s = time.monotonic(), time.process_time()
        out = join(files, settings(SHARDS), Path(folder))
        seconds, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
        found = examples(out)
    answer: dict[str, Any] = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "examples": found.num_rows,
        "positives": int(found["label_click"].to_numpy().sum()),
        "predicted": found.num_rows - found["fm_logit_click"].null_count,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
