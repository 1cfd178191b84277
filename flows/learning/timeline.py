"""Values over intervals of event time, in bounded memory: when there are too many, pairs merge.

Which intervals there are depends on the event times alone, so a replay finds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Value = TypeVar("Value")


class Timeline(Generic[Value]):
    """One value an interval, in which something is summed up.

    Args:
        width_ms: of an interval at the start.
        capacity: intervals kept; beyond it the width doubles.
        make: a value that nothing was added to.
        merge: adds the second value to the first.
    """

    def __init__(
        self,
        width_ms: int,
        capacity: int,
        make: Callable[[], Value],
        merge: Callable[[Value, Value], None],
    ) -> None:
        self.width_ms = width_ms
        self.values: dict[int, Value] = {}
        """By number of the interval since time 0."""
        self._capacity = capacity
        self._make = make
        self._merge = merge

    def of(self, ts_ms: Array) -> list[tuple[Value, Array]]:
        """The values to add to, each with the positions of the events that belong to it."""
        for index in np.unique(ts_ms // self.width_ms).tolist():
            if index not in self.values:
                self.values[index] = self._make()
        while len(self.values) > self._capacity:
            self._double()
        indices = ts_ms // self.width_ms
        return [
            (self.values[index], np.flatnonzero(indices == index))
            for index in np.unique(indices).tolist()
        ]

    def items(self) -> list[tuple[int, Value]]:
        """Start (ms) and value of each interval that saw an event, in order of time."""
        return [(i * self.width_ms, self.values[i]) for i in sorted(self.values)]

    def last_two_thirds_ms(self) -> int:
        """Start (ms) of the last two thirds of what was seen; 0 if nothing was."""
        if not self.values:
            return 0
        first, last = min(self.values), max(self.values)
        return (first + -(-(last + 1 - first) // 3)) * self.width_ms

    def since(self, start_ms: int) -> Value:
        """A new value: the sum of the intervals that begin at `start_ms` or later."""
        return self._sum([value for start, value in self.items() if start >= start_ms])

    def recent(self, num: int) -> Value:
        """A new value: the sum of the newest `num` intervals."""
        return self._sum([value for _, value in self.items()[-num:]])

    def _sum(self, values: list[Value]) -> Value:
        total = self._make()
        for value in values:
            self._merge(total, value)
        return total

    def _double(self) -> None:
        self.width_ms *= 2
        merged: dict[int, Value] = {}
        for index in sorted(self.values):
            if index // 2 in merged:
                self._merge(merged[index // 2], self.values[index])
            else:
                merged[index // 2] = self.values[index]
        self.values = merged
