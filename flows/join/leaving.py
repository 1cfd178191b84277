"""The example rows that leave a shard in one step, before they are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.join.label_rules import Ranks

Masks = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.int8]]

WHOLE = -1
"""In the place of a task: a row of a window, of all its tasks."""

PLAIN_ORDER = ["closed_ms", "impression_id", "rank"]
"""Of rows of windows; an id is admitted at most once at a time."""
TIES = ["task", "correction", "shown_ms"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """Rows in their order. Legend: N = rows, T = tasks."""

    rows: pl.DataFrame
    """at (its impression's row in the step's table), impression_id, shown_ms, closed_ms, rank (of
    the window), task (WHOLE, or the one of an early row or a correction), correction."""
    masks_NT: Masks
    """Whether a task counts."""
    labels_NT: Labels
    """0 where the mask is false."""

    def in_order(self) -> Leaving:
        """The rows that have a task, in the order of examples."""
        kept = pl.Series(self.masks_NT.any(axis=1))
        keys = PLAIN_ORDER if (self.rows["task"] == WHOLE).all() else [*PLAIN_ORDER, *TIES]
        rows = self.rows.with_row_index("row").filter(kept).sort(keys)
        order = rows["row"].to_numpy()
        return Leaving(
            rows=rows.drop("row"), masks_NT=self.masks_NT[order], labels_NT=self.labels_NT[order]
        )


def plain(due: pl.DataFrame, found: pl.DataFrame, ranks_T: Ranks) -> Leaving:
    """Rows of closing windows.

    Args:
        due: the columns of `Leaving.rows` but the last two.
        found: row, task, label.
        ranks_T: window of each task.
    """
    masks_NT = due["rank"].to_numpy()[:, None] == ranks_T
    labels_NT = np.zeros(masks_NT.shape, dtype=np.int8)
    labels_NT[found["row"].to_numpy(), found["task"].to_numpy()] = found["label"].to_numpy()
    return Leaving(rows=whole(due), masks_NT=masks_NT, labels_NT=labels_NT)


def whole(due: pl.DataFrame) -> pl.DataFrame:
    """Rows of windows: all tasks, no correction."""
    return due.with_columns(task=pl.lit(WHOLE, pl.Int16), correction=pl.lit(0, pl.Int64))


def single(rows: pl.DataFrame, num_tasks: int) -> Leaving:
    """Rows of one task each.

    Args:
        rows: the columns of `Leaving.rows`, and label.
        num_tasks: T.
    """
    n, task = np.arange(rows.height), rows["task"].to_numpy()
    masks_NT = np.zeros((rows.height, num_tasks), dtype=np.bool_)
    labels_NT = np.zeros((rows.height, num_tasks), dtype=np.int8)
    masks_NT[n, task] = True
    labels_NT[n, task] = rows["label"].to_numpy()
    return Leaving(rows=rows.drop("label"), masks_NT=masks_NT, labels_NT=labels_NT)


def together(first: Leaving, second: Leaving) -> Leaving:
    """Rows of both, in no order."""
    return Leaving(
        rows=pl.concat(
            [first.rows, second.rows.select(first.rows.columns)], how="vertical_relaxed"
        ),
        masks_NT=np.concatenate([first.masks_NT, second.masks_NT]),
        labels_NT=np.concatenate([first.labels_NT, second.labels_NT]),
    )
