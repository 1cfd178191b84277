"""How far the inputs of a backfill have come, and which event times matter to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flows.backfill.plan import Plan
from flows.join.label_rules import LabelRules
from flows.join.read_ahead import ReadAhead
from flows.records import BEGIN_MS, END_MS
from flows.settings import Settings


@dataclass
class Course:
    """How far the inputs of this process have come."""

    on_progress: Callable[[int], None]
    """Called with the number of offsets read so far."""
    leave_out_quiet: bool = False
    cap_ms: int = END_MS
    """Least watermark of the partitions whose span is read: no window behind it closes."""
    held_by: str = ""
    """The partition that has it."""
    left_open: dict[str, int] = field(default_factory=dict)
    """Impressions behind the cap, by partition."""
    judged: dict[str, dict[str, int]] = field(default_factory=dict)
    """Events read, by partition and what became of them (flows/backfill/set_aside.py)."""
    offsets: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    """Watermark of each partition whose span is not read yet, as far as this process knows."""
    newest_ms: int = BEGIN_MS
    """Largest watermark of the partitions whose span is read."""

    def at(self, name: str, num_offsets: int) -> None:
        """A partition has read so many offsets."""
        if self.offsets.get(name) != num_offsets:
            self.offsets[name] = num_offsets
            self.on_progress(sum(self.offsets.values()))

    def ended(self, name: str, watermark_ms: int) -> None:
        """The span of a partition is read, or does not matter any more."""
        self.unread.pop(name, None)
        self.newest_ms = max(self.newest_ms, watermark_ms)
        if not self.leave_out_quiet and (watermark_ms, name) < (self.cap_ms, self.held_by):
            self.cap_ms, self.held_by = watermark_ms, name

    @property
    def followed_ms(self) -> int:
        """Watermark of partitions that are left out."""
        return min(self.unread.values(), default=self.newest_ms)


class BackfillAhead(ReadAhead):
    """Lets a source read on behind the cap: it keeps nothing of that."""

    def __init__(self, settings: Settings, course: Course) -> None:
        super().__init__(settings)
        self._course = course

    def allows(self, watermark_ms: int) -> bool:
        """Whether a source that stands at `watermark_ms` shall read on."""
        return watermark_ms >= self._course.cap_ms or super().allows(watermark_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Event times that matter to the examples that are wanted."""

    first_ms: int
    """Rows before it are not needed."""
    from_ms: int
    """Impressions before it are not wanted; they tell which of the others are repeats."""
    to_ms: int
    """Impressions from here on are not wanted."""
    last_ms: int
    """No label or prediction from here on matters; a watermark here closes every window."""

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> Range:
        """Of a plan."""
        first_ms, last_ms = plan.from_ms, plan.to_ms
        if first_ms > BEGIN_MS:
            first_ms -= settings.das.repeat_horizon_ms
        if last_ms < END_MS:
            last_ms += LabelRules.of(settings).keep_ms + settings.das.bucket_ms
        return cls(first_ms=first_ms, from_ms=plan.from_ms, to_ms=plan.to_ms, last_ms=last_ms)
