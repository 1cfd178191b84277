"""The teacher's logged prediction of an example, found by the place of the impression's record."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from flows.join.places import Places
from flows.join.segment import Times, times
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState
from monitoring.metrics import DAS_REPEATS, DAS_UNMATCHED

Span = tuple[int, int]
"""From an event time on, before another."""


class PredictionJoin:
    """Predictions that wait for their impression's window to close; the first in the log wins."""

    def __init__(self, folder: SegmentFolder, schema: pa.Schema) -> None:
        self._store = SegmentStore(folder, "predictions", schema)

    def add(self, predictions: pa.Table) -> None:
        """Take predictions in."""
        self._store.append(predictions)

    def num_new(self, predictions: pa.Table, before_ms: int) -> int:
        """How many predictions, of event times before one, are repeats of none that is kept."""
        early = predictions.filter(pa.array(times(predictions) < before_ms))
        if not early.num_rows:
            return 0
        return int((Places(self._store.at(np.unique(times(early)))).find(early) < 0).sum())

    def join(
        self, due: pa.Table, spans: Iterable[Span], others_N: Times
    ) -> tuple[pa.Table, pa.Array]:
        """Predictions of examples.

        Args:
            due: examples, with the place of their record.
            spans: of the event time of their impressions.
            others_N: event times of further impressions, ascending, each once.

        Returns:
            Predictions, and for each row of `due` its row among them, or null.
        """
        tables = [self._store.between(*span) for span in united(spans)]
        found = pa.concat_tables([*tables, self._store.at(others_N)])
        at = Places(found).find(due)
        return found, pa.array(at, mask=at < 0)

    def forget(self, before_ms: int, impressions: pa.Table) -> None:
        """Forget predictions before `before_ms`; repeats, and those of no impression, are counted.

        Args:
            before_ms: event time.
            impressions: the admitted ones of that time, not forgotten earlier.
        """
        old = self._store.between(self._store.floor_ms, before_ms)
        if old.num_rows:
            places = Places(old)
            found = places.find(impressions)
            matched = np.zeros(old.num_rows, dtype=np.bool_)
            matched[found[found >= 0]] = True
            DAS_REPEATS.labels("predictions").inc(old.num_rows - places.num_distinct)
            DAS_UNMATCHED.labels("predictions").inc(places.num_distinct - int(matched.sum()))
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
