"""What a real log holds besides clean events: orphans, repeats, late labels, broken messages.

Clean tables go in and come out with what the configured rates add; `Added` says how much, so that a
run's counters can be compared with it. Broken messages are extra, made from good ones under ids of
their own, and kept as they were written: the dead letters must hold them byte for byte.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.event_settings import Noise

WRITTEN = "written_ms"
"""Event time at which a label is written to the log."""
Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A broken message."""

    kind: str
    row: int
    """It is written before this row of the clean table."""
    value: bytes


class NoiseSource:
    """Adds noise to slice after slice of a log; the same seed and slices, the same noise."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._rng = np.random.default_rng(noise.seed)
        self._malformed_rng = np.random.default_rng([noise.seed, 1])  # leaves other noise as it is
        self._num_malformed = 0
        self.added: Counter[str] = Counter()
        """Rows added so far: orphan_labels, repeated_labels, repeated_impressions, late_labels."""

    def impressions(self, table: pa.Table) -> pa.Table:
        """The impressions, some of them twice in a row."""
        repeats = 1 + self._some(table, self._noise.repeated_impressions)
        self.added["repeated_impressions"] += int(repeats.sum()) - len(table)
        return table.take(pa.array(np.repeat(np.arange(len(table)), repeats)))

    def labels(self, table: pa.Table) -> pa.Table:
        """The labels with orphans, repeats and a column `written_ms`, later than `ts_ms` if late.

        A repeat is written with its first; a late label is written `late_by_s` late.
        """
        noise = self._noise
        late = self._some(table, noise.late_labels)
        table = table.append_column(
            WRITTEN, pc.add(table["ts_ms"], pa.array(late * round(noise.late_by_s * 1000)))
        )
        orphans = table.filter(pa.array(self._some(table, noise.orphan_labels).astype(bool)))
        strangers = pc.binary_join_element_wise("orphan", orphans["impression_id"], "-")
        orphans = orphans.set_column(0, table.schema.field("impression_id"), strangers)
        orphans = orphans.set_column(orphans.num_columns - 1, WRITTEN, orphans["ts_ms"])
        repeats = 1 + self._some(table, noise.repeated_labels)
        self.added["late_labels"] += int((late * repeats).sum())
        self.added["orphan_labels"] += len(orphans)
        self.added["repeated_labels"] += int(repeats.sum()) - len(table)
        repeated = table.take(pa.array(np.repeat(np.arange(len(table)), repeats)))
        return pa.concat_tables([repeated, orphans]).combine_chunks()

    def malformed(self, events: list[bytes], is_json: bool = True) -> list[Malformed]:
        """Broken messages to mix in, all kinds in turn, ascending by row."""
        if not events or not self._noise.malformed:
            return []
        rows = np.flatnonzero(self._malformed_rng.random(len(events)) < self._noise.malformed)
        kinds = list(KINDS if is_json else FRAMED_KINDS)
        made = []
        for row in rows.tolist():
            kind = kinds[self._num_malformed % len(kinds)]
            if is_json:
                event = json.loads(events[row])
                event["impression_id"] = f"malformed-{self._num_malformed}"
                value = KINDS[kind](event)
            else:
                value = FRAMED_KINDS[kind](events[row])
            made.append(Malformed(kind=kind, row=row, value=value))
            self._num_malformed += 1
            self.added[f"malformed_{kind}"] += 1
        return made

    def _some(self, table: pa.Table, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        """1 for each row that chance picked, else 0."""
        return (self._rng.random(len(table)) < rate).astype(np.int64)


def written(event: Event) -> bytes:
    """The event as JSON."""
    return json.dumps(event, separators=(",", ":")).encode()


def without(event: Event, name: str) -> Event:
    """The event lacking a field."""
    return {k: v for k, v in event.items() if k != name}


def of_unknown_name(event: Event) -> Event:
    """An impression of no configured domain, a label of no configured task."""
    return {**event, ("domain" if "domain" in event else "task"): "no_such_name"}


KINDS: dict[str, Callable[[Event], bytes]] = {
    "not_utf8": lambda event: written({**event, "note": "?"}).replace(b"?", b"\xff\xfe"),
    "truncated": lambda event: written(event)[:-1],
    "not_an_object": lambda event: written(event).join((b"[", b"]")),
    "missing_field": lambda event: written(without(event, "ts_ms")),
    "wrong_type": lambda event: written({**event, "ts_ms": "yesterday"}),
    "null_id": lambda event: written({**event, "impression_id": None}),
    "empty_id": lambda event: written({**event, "impression_id": ""}),
    "absurd_time": lambda event: written({**event, "ts_ms": 10**18}),
    "unknown_name": lambda event: written(of_unknown_name(event)),
    "two_events": lambda event: written(event) + b"\n" + written(event),
}
"""Ways to break a JSON event, by name."""
FRAMED_KINDS: dict[str, Callable[[bytes], bytes]] = {
    "not_framed": lambda message: b"\1" + message[1:],
    "unknown_schema": lambda message: message[:1] + b"\xff" * 4 + message[5:],
    "without_body": lambda message: message[:5],
    "truncated": lambda message: message[:-1],
}
"""Ways to break an Avro or Protobuf message."""
