"""How far in event time a shard may close: the minimum over its inputs' source partitions.

Sources are ("impressions", p), ("labels", p), and ("fm", p): the teacher's progress on impressions
partition p. With `as_of` the log alone decides. Live, the wall clock knows two ways out of waiting:

- a partition that its source calls idle (read to its end, then silent) is left out, and with it the
  teacher's progress on it, if that has caught up. So is one that goes on behind what is closed,
  once it was read to its end in this life of the process: until then it may hold what was written
  while nobody read, and is waited for;
- the teacher's progress on a partition is left out once it lacks what was wanted of it
  `grace_s` ago, whether it is silent or merely too slow.

Whoever is left out rejoins when its own watermark has reached what the shard has closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from flows.records import BEGIN_MS, END_MS
from monitoring.metrics import DAS_LEFT_OUT

Source = tuple[str, int]
TEACHER = "fm"
STANDINGS = ("waited for", "ended", "idle", "silent", "rejoining")
"""How a shard sees a source: it is waited for, or left out, and why."""
WAITED_FOR, ENDED, IDLE, SILENT, REJOINING = STANDINGS


def sources(impressions: int, labels: int) -> list[Source]:
    """All sources of a shard, given the number of partitions of each topic."""
    teacher = [(TEACHER, p) for p in range(impressions)]
    return [
        *(("impressions", p) for p in range(impressions)),
        *teacher,
        *(("labels", p) for p in range(labels)),
    ]


class Watermarks:
    """The largest watermark of each source; all of them count."""

    def __init__(self, names: Iterable[Source]) -> None:
        self.values: dict[Source, int] = dict.fromkeys(names, BEGIN_MS)

    def advance(self, source: Source, ts_ms: int) -> None:
        """Take a watermark in; restarts repeat old ones."""
        self.values[source] = max(self.values[source], ts_ms)

    def idle(self, source: Source) -> None:
        """A source says that it has read its partition to the end and found it silent."""

    def at_end(self, source: Source) -> None:
        """A source says that it has read its partition to the end."""

    def behind(self, source: Source) -> None:
        """A source says that it no longer knows whether it has."""

    def minimum(self, _done_ms: int, _now_s: float) -> int:
        """Event time that no further row will precede."""
        return min(self.values.values())

    def standing(self, source: Source, _done_ms: int) -> str:
        """How a source counts at this moment, one of `STANDINGS`."""
        return ENDED if self.values[source] >= END_MS else WAITED_FOR


class PatientWatermarks(Watermarks):
    """Watermarks of a live shard, with two ways out of waiting."""

    def __init__(self, names: Iterable[Source], grace_s: float) -> None:
        super().__init__(names)
        self._grace_s = grace_s
        self._idle: set[Source] = set()
        self._behind = {source for source in self.values if source[0] != TEACHER}
        self._silent: set[Source] = set()
        self._wanted: deque[tuple[float, int]] = deque()  # (wall clock, event time), both ascending
        self._wanted_ms = BEGIN_MS  # what was wanted `grace_s` ago

    def advance(self, source: Source, ts_ms: int) -> None:
        """Take a watermark in; a higher one shows that the source is not idle."""
        if ts_ms > self.values[source]:
            self._idle.discard(source)
        super().advance(source, ts_ms)

    def idle(self, source: Source) -> None:
        """Leave `source` out until its watermark moves."""
        self.at_end(source)
        if source not in self._idle:
            self._idle.add(source)
            DAS_LEFT_OUT.labels("idle_partition").inc()

    def at_end(self, source: Source) -> None:
        """Wait for `source` no longer where it is behind what is closed."""
        self._behind.discard(source)

    def behind(self, source: Source) -> None:
        """Wait for `source`, wherever it is."""
        self._idle.discard(source)
        self._behind.add(source)

    def minimum(self, done_ms: int, now_s: float) -> int:
        """Event time to close, given the wall clock; never less than `done_ms` by rejoining."""
        base_ms = self._base(done_ms)
        self._remember(base_ms, now_s)
        fm = [(p, ts_ms) for (kind, p), ts_ms in self.values.items() if kind == TEACHER]
        progress = [self._teacher(p, ts_ms, done_ms) for p, ts_ms in fm]
        return min([base_ms, *(ts_ms for ts_ms in progress if ts_ms is not None)])

    def standing(self, source: Source, done_ms: int) -> str:
        """How a source counts at this moment, one of `STANDINGS`."""
        (kind, partition), ts_ms = source, self.values[source]
        if ts_ms >= END_MS:
            return ENDED
        if kind == TEACHER:
            if source in self._silent:
                return SILENT
            return IDLE if self._caught_up(("impressions", partition), ts_ms) else WAITED_FOR
        if source in self._idle:
            return IDLE
        return WAITED_FOR if self._counts(source, ts_ms, done_ms) else REJOINING

    def _base(self, done_ms: int) -> int:
        """Event time to close if there were no teacher."""
        events = {s: ts_ms for s, ts_ms in self.values.items() if s[0] != TEACHER}
        running = {s: ts_ms for s, ts_ms in events.items() if ts_ms < END_MS}
        if not running:
            return END_MS
        active = [ts for s, ts in running.items() if self._counts(s, ts, done_ms)]
        return min(active) if active else max(running.values())

    def _counts(self, source: Source, ts_ms: int, done_ms: int) -> bool:
        """Whether a partition that goes on is waited for."""
        return source not in self._idle and (ts_ms >= done_ms or source in self._behind)

    def _remember(self, base_ms: int, now_s: float) -> None:
        if not self._wanted or base_ms > self._wanted[-1][1]:
            self._wanted.append((now_s, base_ms))
        while self._wanted and self._wanted[0][0] <= now_s - self._grace_s:
            self._wanted_ms = max(self._wanted_ms, self._wanted.popleft()[1])

    def _teacher(self, partition: int, ts_ms: int, done_ms: int) -> int | None:
        """The teacher's progress on a partition, or None if it is not waited for."""
        source = (TEACHER, partition)
        impressions = ("impressions", partition)
        if ts_ms < self._wanted_ms and not self._caught_up(impressions, ts_ms):
            if source not in self._silent:
                self._silent.add(source)
                DAS_LEFT_OUT.labels("silent_teacher").inc()
        elif ts_ms >= done_ms:
            self._silent.discard(source)
        if source in self._silent or self._caught_up(impressions, ts_ms):
            return None
        return ts_ms

    def _caught_up(self, impressions: Source, ts_ms: int) -> bool:
        return impressions in self._idle and ts_ms >= self.values[impressions]
