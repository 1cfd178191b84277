"""Example rows as the arrays that a trainer works on: inputs, labels, and what is measured.

Legend: B = rows, T = tasks of the model, F, L, N as in models/encoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.settings import Task
from models.encoding import Encoder, Inputs
from models.hashing import hash_ids

Array = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

USER = "user_id"
"""Categorical feature whose values group rows for GAUC, where it is declared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Examples in the order of learning."""

    ids_BF: Array
    sequence_BL: Array
    numeric_BN: Array
    labels_BT: Array
    """float32; 0 where the mask is false."""
    mask_BT: Array
    """bool: the label of the task counts."""
    teacher_BT: Array
    """float32 logits; NaN: the teacher made no prediction."""
    oracle_BT: Array
    """float64 true probabilities; NaN: unknown."""
    ts_B: Array
    """Event time of the impression, ms."""
    closed_B: Array
    """Event time at which the label was decided, ms."""
    first_B: Array
    """bool: the first example of its tasks, not a correction."""
    user_B: Array
    """int64 hash of the user; 0: not declared."""

    def __len__(self) -> int:
        return len(self.ts_B)

    @property
    def inputs(self) -> Inputs:
        """What a model reads."""
        return Inputs(self.ids_BF, self.sequence_BL, self.numeric_BN)

    def take(self, chosen: slice | Array) -> Rows:
        """The rows at some positions."""
        return Rows(**{name: array[chosen] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """Every column by its name: plain data for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """One after the other; there must be at least one."""
        if len(parts) == 1:
            return parts[0]
        return Rows(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(Rows)
            }
        )


class RowReader:
    """Chooses and decodes the rows of one model.

    Args:
        encoder: of the model.
        tasks: of the model; a row without any of them is not learned.
        domains: of the model; empty: all.
    """

    def __init__(self, encoder: Encoder, tasks: Sequence[Task], domains: Sequence[str]) -> None:
        self._encoder = encoder
        self._tasks = tuple(tasks)
        self._domains = pa.array(domains, pa.string()) if domains else None

    def keep(self, table: pa.Table) -> Mask:
        """Which rows of `examples` the model learns, shape [B]."""
        kept = [self._masks(table).any(axis=1)]
        if self._domains is not None:
            kept.append(to_numpy(pc.is_in(table["domain"], value_set=self._domains), False))
        chosen: Mask = np.logical_and.reduce(kept)
        return chosen

    def read(self, table: pa.Table) -> Rows:
        """The arrays of rows that `keep` chose."""
        inputs = self._encoder.encode(table)
        mask_BT = self._masks(table)
        labels_BT = self._by_task(table, "label_{}", 0).astype(np.float32)
        names = [task.oracle for task in self._tasks]
        oracle_BT = np.full(mask_BT.shape, np.nan)
        for position, name in enumerate(names):
            if name is not None:
                oracle_BT[:, position] = to_numpy(table[name], np.nan)
        return Rows(
            ids_BF=inputs.ids_BF,
            sequence_BL=inputs.sequence_BL,
            numeric_BN=inputs.numeric_BN,
            labels_BT=np.where(mask_BT, labels_BT, np.float32(0)),
            mask_BT=mask_BT,
            teacher_BT=self._by_task(table, "fm_logit_{}", np.nan).astype(np.float32),
            oracle_BT=oracle_BT,
            ts_B=table["ts_ms"].to_numpy(),
            closed_B=table["closed_ts_ms"].to_numpy(),
            first_B=to_numpy(table["correction"], 0) == 0,
            user_B=self._users(table),
        )

    def _masks(self, table: pa.Table) -> Mask:
        return self._by_task(table, "mask_{}", False).astype(bool)

    def _by_task(self, table: pa.Table, column: str, null: object) -> Array:
        columns = [to_numpy(table[column.format(task.name)], null) for task in self._tasks]
        return np.stack(columns, axis=1)

    def _users(self, table: pa.Table) -> Array:
        if USER not in table.column_names or not table.num_rows:
            return np.zeros(table.num_rows, dtype=np.int64)
        return hash_ids(table[USER].combine_chunks()).view(np.int64)


def to_numpy(column: pa.ChunkedArray, null: object) -> Array:
    """A column's values, with `null` where there is none."""
    if column.null_count:
        column = pc.fill_null(column, null)
    values: Array = column.to_numpy()
    return values
