"""The project's own flow from files to a file: `python -m benchmarks.das.ours --help`.

The flow of flows/das.py with its parser, rules, watermarks and shards; only the ends differ: the
sources read lines of files in place of messages of a broker, the sink appends the messages of
`examples` to a file, each behind its length.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from benchmarks.das.engine import Outcome, one_core, run_engine
from benchmarks.das.events import EventFiles, event_files, settings
from benchmarks.das.job import Clock, report
from flows.das import build
from flows.events.json_events import JsonReader
from flows.events.lateness import Lateness
from flows.events.rules import EventRules, impression_rules, label_rules
from flows.join.read_ahead import ReadAhead
from flows.join.sources import InputPartition, Item, rows_by_shard
from flows.join.watermarks import TEACHER
from flows.kafka.sink import Outgoing
from flows.records import ADDRESS, decode, prediction_schema
from flows.runner import Placement, run_flow
from flows.settings import Settings

LENGTH = struct.Struct("<I")
SHARDS = 1
"""As the peers have one task slot, one thread."""
PIECE = 1_000_000
"""Bytes read at a time, as many as a cache holds."""
PIECES = 7
"""Some 16,384 impressions, what `das.max_batch` is by default."""
EPOCH_S = 3600.0
"""Longer than the job: no snapshot is taken, as the peers take none."""
EVENT_RULES = {"impressions": impression_rules, "labels": label_rules}


class FilePartition(InputPartition):
    """Lines of one file, a batch at a time."""

    def __init__(self, settings: Settings, kind: str, path: Path, ahead: ReadAhead) -> None:
        super().__init__(ahead, settings.das.shards)
        self._kind = kind
        self._source = (TEACHER if kind == "predictions" else kind, 0)
        self._lateness = Lateness(0)
        self._schema = prediction_schema(settings)
        self._rules: EventRules | None = None
        if kind != "predictions":
            self._rules = EVENT_RULES[kind](settings)
        self._json = JsonReader(self._rules.schema if self._rules else self._schema)
        self._file = path.open("rb")
        self._offset, self.ended = 0, False

    def snapshot(self) -> None:
        """Nothing is kept: the job starts anew."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _has_ended(self) -> bool:
        return self.ended

    def _watermark_ms(self) -> int:
        return self._lateness.watermark_ms

    def _read(self) -> list[Item]:
        items = rows_by_shard(self._kind, self.read_rows(), self._num_shards)
        return items + self._to_all("watermark", self._source, self._lateness.watermark_ms)

    def read_rows(self) -> pa.Table:
        """Rows of the next lines, and behind the last that the file has `ended`."""
        pieces = [self._file.read(PIECE) + self._file.readline() for _ in range(PIECES)]
        rows = self._rows(pieces)
        self._offset += rows.num_rows
        if not self._lateness.judge(rows["ts_ms"].to_numpy()).all():
            raise RuntimeError(f"{self._file.name} must be in the order of event time")
        if not pieces[-1]:
            self.ended = True
            self._lateness.end()
        return rows

    def _rows(self, pieces: list[bytes]) -> pa.Table:
        """Rows of lines, by the parser and the rules of flows/events/reader.py."""
        tables: list[pa.Table] = []
        bad: dict[int, str] = {}
        for piece in pieces:
            offset = sum(table.num_rows for table in tables)
            table, faults = self._json.parse_lines(piece)
            tables.append(table)
            bad.update({offset + line: why for line, why in faults.items()})
        columns = pa.concat_tables(tables).combine_chunks()
        if self._rules is None:
            rows = columns.cast(self._schema)
        else:
            for why, bad_N in self._rules.faults(columns):
                bad |= dict.fromkeys(map(int, np.flatnonzero(bad_N)), why)
            rows = self._rules.finish(self._addressed(columns))
        if bad:
            line, why = min(bad.items())
            raise RuntimeError(f"{self._file.name} line {self._offset + line + 1}: {why}")
        return rows

    def _addressed(self, columns: pa.Table) -> pa.Table:
        """With the place of each line, as if the file were partition 0 of a topic."""
        num = columns.num_rows
        places = (np.zeros(num), np.arange(self._offset, self._offset + num), np.zeros(num))
        for field, place in zip(ADDRESS, places, strict=True):
            columns = columns.append_column(
                field, pa.array(place.astype(np.int64)).cast(field.type)
            )
        return columns


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
        while not partition.ended:
            partition.read_rows()
        partition.close()


def run_ours(rows: int, work_folder: Path, *, limit_s: float, only_decode: bool = False) -> Outcome:
    """The job in a process of its own, on one core.

    Args:
        rows: impressions.
        work_folder: of the events.
        limit_s: it is killed behind it.
        only_decode: read and decode, and drop the rows; the counts are those of the events.

    Raises:
        EngineFailed: it failed or was too slow.
    """
    command = [sys.executable, "-m", "benchmarks.das.ours", f"--rows={rows}"]
    command += ["--only-decode"] if only_decode else []
    return run_engine(
        [*command, f"--work={work_folder}"],
        limit_s=limit_s,
        cores=[one_core()],
        environ={"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Join, count, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only-decode", action="store_true")
    given = parser.parse_args(argv)
    files, clock = event_files(given.rows, given.work), Clock()
    pa.set_cpu_count(1)
    JsonReader(prediction_schema(settings(SHARDS)))  # loads compiled code, as an import does
    if given.only_decode:
        with clock.running():
            decode_only(files, settings(SHARDS))
        report(clock, files.num_impressions, files.num_positives, files.num_impressions)
        return
    with tempfile.TemporaryDirectory() as folder:
        with clock.running():
            out = join(files, settings(SHARDS), Path(folder))
        found = examples(out)
    positives = int(found["label_click"].to_numpy().sum())
    report(clock, len(found), positives, len(found) - found["fm_logit_click"].null_count)


if __name__ == "__main__":
    main()
