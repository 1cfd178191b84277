"""When a shard's rows go to files beside its other work: shortly before a snapshot.

The snapshot then writes only what has come since, and the join stands still for that long. Earlier
would write more rows that are forgotten before the snapshot. Flink calls it an asynchronous
snapshot; here it is taken in steps, and only the last of them is waited for.
"""

from __future__ import annotations

STEPS = (0.75, 0.95)
"""Of the interval between two snapshots."""


class Spilling:
    """Tells the moments. The first interval begins with the first look at the clock."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._now_s: float | None = None
        self._due_s: list[float] = []

    def saved(self) -> None:
        """A snapshot was taken."""
        if self._now_s is not None:
            self._due_s = [self._now_s + step * self._every_s for step in STEPS]

    def is_due(self, now_s: float) -> bool:
        """Whether it is time; once for each moment.

        Args:
            now_s: of a clock that never goes back.
        """
        is_first, self._now_s = self._now_s is None, now_s
        if is_first:
            self.saved()
        passed = [due_s for due_s in self._due_s if due_s <= now_s]
        self._due_s = self._due_s[len(passed) :]
        return bool(passed)
