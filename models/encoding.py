"""Columns of impressions to the arrays that a model reads. Part of the model; no torch.

Training and serving call the same encoder, so they cannot disagree on a row number.

Legend: B = impressions, F = categorical features then crosses, L = ids of all sequences side by
side, N = numeric features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.hashing import Hashes, combine, hash_ids, rows_of, salt
from models.schema import Encoding, Feature

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

NUMERIC_LIMIT = 1000.0
"""Numeric inputs are clipped to ± this, so that one absurd value cannot overflow the network."""


@dataclass(frozen=True)
class Inputs:
    """Encoded impressions."""

    ids_BF: Ints
    """Rows of the embedding table, in [0, table_rows)."""
    sequence_BL: Ints
    """The same for sequences; `table_rows` is padding."""
    numeric_BN: Floats
    """Transformed, finite values."""

    def __len__(self) -> int:
        return len(self.ids_BF)

    def take(self, chosen: Ints | slice) -> Inputs:
        """The impressions at some positions."""
        return Inputs(self.ids_BF[chosen], self.sequence_BL[chosen], self.numeric_BN[chosen])

    @staticmethod
    def concat(parts: Sequence[Inputs]) -> Inputs:
        """One after the other.

        Raises:
            ValueError: there are no parts.
        """
        return Inputs(
            np.concatenate([p.ids_BF for p in parts]),
            np.concatenate([p.sequence_BL for p in parts]),
            np.concatenate([p.numeric_BN for p in parts]),
        )


class Encoder:
    """Encodes impressions as one `Encoding` prescribes."""

    def __init__(self, encoding: Encoding) -> None:
        if not encoding.categorical:
            raise ValueError("features must hold at least one categorical feature, got none")
        names = {f.name for f in encoding.categorical}
        for cross in encoding.crosses:
            for name in cross:
                if name not in names:
                    raise ValueError(f"crosses: {name!r} is not a categorical feature")
        self.encoding = encoding

    def encode(self, columns: pa.Table) -> Inputs:
        """Arrays of the impressions; other columns are ignored.

        Null ids have a row of their own; null ids inside a sequence are padding; a null sequence
        is empty; numbers that are null or not finite are 0.

        Raises:
            KeyError: a feature's column is missing.
            pyarrow.ArrowInvalid: a column has another type and cannot be cast.
        """
        return Inputs(self._ids(columns), self._sequences(columns), self._numeric(columns))

    def _ids(self, columns: pa.Table) -> Ints:
        encoding = self.encoding
        hashes = {f.name: hash_ids(column(columns, f)) for f in encoding.categorical}
        fields: list[tuple[str, Hashes]] = list(hashes.items())
        for cross in encoding.crosses:
            fields.append(("*".join(cross), combine([hashes[name] for name in cross])))
        ids_BF = np.empty((columns.num_rows, len(fields)), dtype=np.int64)
        for index, (name, hashes_B) in enumerate(fields):
            ids_BF[:, index] = rows_of(hashes_B, salt(name), encoding.table_rows)
        return ids_BF

    def _sequences(self, columns: pa.Table) -> Ints:
        features = self.encoding.sequences
        rows = [padded_rows(column(columns, f), f, self.encoding.table_rows) for f in features]
        empty_B0 = np.empty((columns.num_rows, 0), dtype=np.int64)
        return np.concatenate([empty_B0, *rows], axis=1)

    def _numeric(self, columns: pa.Table) -> Floats:
        features = self.encoding.numeric
        numeric_BN = np.empty((columns.num_rows, len(features)), dtype=np.float32)
        for index, feature in enumerate(features):
            values_B = column(columns, feature).to_numpy(zero_copy_only=False)
            numeric_BN[:, index] = transformed(values_B, feature)
        return numeric_BN


def column(columns: pa.Table, feature: Feature) -> pa.Array:
    """One contiguous array of a feature, in the type of its declaration.

    Raises:
        KeyError: the column is missing.
    """
    if feature.name not in columns.column_names:
        raise KeyError(f"column {feature.name!r} is missing; got {columns.column_names}")
    ident = pa.string() if feature.dtype == "string" else pa.int64()
    types = {"categorical": ident, "numeric": pa.float64(), "sequence": pa.list_(ident)}
    chunks = columns.column(feature.name).cast(types[feature.kind]).combine_chunks()
    if isinstance(chunks, pa.ChunkedArray):  # what combine_chunks makes of no chunks
        return pa.array([], type=types[feature.kind])
    return chunks


def padded_rows(lists: pa.ListArray, feature: Feature, table_rows: int) -> Ints:
    """Rows of the first `max_length` ids of each list, shape [B, max_length], then padding."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    ids = lists.values.slice(first, last - first)
    rows = rows_of(hash_ids(ids), salt(feature.name), table_rows)
    if ids.null_count:
        rows[ids.is_null().to_numpy(zero_copy_only=False)] = table_rows
    lengths_B = np.diff(offsets)
    if lists.null_count:
        lengths_B[lists.is_null().to_numpy(zero_copy_only=False)] = 0
    steps = np.arange(feature.max_length)
    kept_BL = steps < lengths_B[:, None]
    rows_BL = np.full(kept_BL.shape, table_rows, dtype=np.int64)
    rows_BL[kept_BL] = rows[((offsets[:-1] - first)[:, None] + steps)[kept_BL]]
    return rows_BL


def transformed(
    values_B: np.ndarray[Any, np.dtype[np.float64]], feature: Feature
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the network sees of a numeric feature: finite, within ± NUMERIC_LIMIT."""
    known_B = np.where(np.isfinite(values_B), values_B, 0.0)
    if feature.transform == "log1p":
        known_B = np.sign(known_B) * np.log1p(np.abs(known_B))
    return np.clip(known_B, -NUMERIC_LIMIT, NUMERIC_LIMIT)
