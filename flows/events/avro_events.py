"""Avro records of one writer's schema to columns, and columns to records."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from flows.events import avro_schema
from flows.events.schema_resolution import SchemaMismatch, check


class LongRecords(ValueError):
    """Some records go on behind their end; `rows` says which."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"{len(rows)} records go on behind their end")
        self.rows = rows


class AvroReader:
    """Reads the records of one schema."""

    def __init__(self, text: str, references: Sequence[str], columns: pa.Schema) -> None:
        """Prepare for a writer's schema.

        Args:
            text: the schema.
            references: schemas that it builds upon, each behind those it needs itself.
            columns: that are read.

        Raises:
            UnusableSchema: its records cannot be read.
            SchemaMismatch: it has not these columns.
        """
        plain = avro_schema.plain(text, references)
        for field in plain["fields"]:
            if field["name"] in columns.names and avro_schema.holds_decimals(field["type"]):
                raise SchemaMismatch(f"column {field['name']!r} holds decimals")
        self._schema = json.dumps(plain)
        try:
            writer = pa.schema(pyruhvro.avro_to_arrow_schema(self._schema))
        except ValueError as error:
            raise avro_schema.UnusableSchema(str(error)) from error
        check(writer, columns)
        self._texts = [f.name for f in columns if f.name in writer.names and _is_text(f.type)]

    def read(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """A row for each record, in the writer's columns.

        Raises:
            LongRecords: some go on behind their end.
            ValueError: one of them is damaged, or not UTF-8.
        """
        batch = self.decode(records)
        for name in self._texts:
            batch.column(name).validate(full=True)
        self._refuse_trailing_bytes(batch, records)
        return batch

    def decode(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """Rows in the writer's columns, of text that may not be UTF-8.

        Raises:
            ValueError: a record is damaged.
        """
        return pyruhvro.deserialize_array(list(records), self._schema)

    def _refuse_trailing_bytes(self, batch: pa.RecordBatch, records: Sequence[bytes]) -> None:
        """The decoder stops behind the last field, whatever follows.

        Written anew, a record is as short as it can be: one that is as long has no more bytes. Any
        other has, if it can be read without its last byte.
        """
        (again,) = pyruhvro.serialize_record_batch(batch, self._schema, 1)
        shortest_N = pc.binary_length(again).to_numpy()
        given_N = np.fromiter(map(len, records), dtype=np.int64, count=len(records))
        suspects = np.flatnonzero(given_N != shortest_N).tolist()
        long_ones = [row for row in suspects if self._reads(records[row][:-1])]
        if long_ones:
            raise LongRecords(long_ones)

    def _reads(self, record: bytes) -> bool:
        try:
            self.decode([record])
        except ValueError:
            return False
        return True


class AvroWriter:
    """Writes records of our own schema."""

    def __init__(self, columns: pa.Schema, name: str) -> None:
        """Write columns as records of a full name."""
        self._wire = pa.schema([field.with_type(_wire_type(field.type)) for field in columns])
        self.text = json.dumps(avro_schema.of_columns(self._wire, name))

    def write(self, table: pa.Table) -> list[bytes]:
        """A record for each row.

        Args:
            table: in the columns of the schema, none of the required ones holding a null.
        """
        (batch,) = table.cast(self._wire).combine_chunks().to_batches()
        (records,) = pyruhvro.serialize_record_batch(batch, self.text, 1)
        written: list[bytes] = records.to_pylist()
        return written


def _wire_type(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_integer(kind) and kind.bit_width < 32 else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or (pa.types.is_list(kind) and _is_text(kind.value_type))
