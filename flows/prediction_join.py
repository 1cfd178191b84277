"""The teacher's logged prediction of an example, found by the place of the impression's record."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import pyarrow as pa

from flows.admission import PLACE
from flows.row_choice import rows_among
from flows.segments import SegmentFolder, SegmentStore, StoreState
from monitoring.metrics import DAS_REPEATS, DAS_UNMATCHED

MANY = 4
"""Predictions looked at for an example, from which on most are left out before the join."""
Span = tuple[int, int]
"""From an event time on, before another."""


class PredictionJoin:
    """Predictions that wait for their impression's window to close; the first in the log wins."""

    def __init__(self, folder: SegmentFolder, schema: pa.Schema) -> None:
        self._store = SegmentStore(folder, "predictions", schema)

    def add(self, predictions: pa.Table) -> None:
        """Take predictions in."""
        self._store.append(predictions)

    def join(self, due: pa.Table, spans: Iterable[Span]) -> tuple[pa.Table, pa.Array]:
        """Predictions of examples.

        Args:
            due: examples, with the place of their record.
            spans: of the event time of their impressions.

        Returns:
            Predictions, and for each row of `due` its row among them, or null.
        """
        found = pa.concat_tables([self._store.between(*span) for span in united(spans)])
        if found.num_rows > MANY * due.num_rows:
            found = rows_among(found, "offset", due.column("offset"))
        places = pl.DataFrame(pl.from_arrow(found.select(PLACE))).with_row_index("found")
        first = places.unique(PLACE, keep="first")
        wanted = pl.DataFrame(pl.from_arrow(due.select(PLACE)))
        rows = wanted.join(first, on=PLACE, how="left", maintain_order="left")
        return found, rows["found"].to_arrow()

    def forget(self, before_ms: int, impressions: pa.Table) -> None:
        """Forget predictions before `before_ms`; repeats, and those of no impression, are counted.

        Args:
            before_ms: event time.
            impressions: the admitted ones of that time, not forgotten earlier.
        """
        old = self._store.between(self._store.floor_ms, before_ms)
        if old.num_rows:
            places = pl.DataFrame(pl.from_arrow(old.select(PLACE)))
            first = places.unique()
            known = pl.DataFrame(pl.from_arrow(impressions.select(PLACE)))
            unmatched = first.join(known, on=PLACE, how="anti").height
            DAS_REPEATS.labels("predictions").inc(places.height - first.height)
            DAS_UNMATCHED.labels("predictions").inc(unmatched)
        self._store.forget(before_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {"predictions": self._store.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._store.restore(state["predictions"])

    @property
    def floor_ms(self) -> int:
        """Predictions before this find nothing any more."""
        return self._store.floor_ms

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._store.num_bytes


def united(spans: Iterable[Span]) -> list[Span]:
    """The same event time, in order and none of it twice; at least one span."""
    out: list[Span] = []
    for low_ms, high_ms in sorted(spans):
        if out and low_ms <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high_ms))
        else:
            out.append((low_ms, high_ms))
    return out
