"""What a backfill has come to: rows, positives, coverage, days, domains, what was left open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from flows.backfill.course import Course
from flows.backfill.plan import Plan
from flows.backfill.rows import ShardRows
from flows.backfill.set_aside import by_topic, reasons
from flows.join.admission import REPEATS
from flows.join.recovery import SavedShard, saved_shards
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore
from flows.join.state import recovery_folder, shards_folder
from flows.records import BEGIN_MS, END_MS, impression_schema
from flows.settings import Settings
from flows.wording import moment, percent

MOST_DAYS = 40
"""Shown in a table; the manifest has all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finished backfill."""

    plan: dict[str, Any]
    """Of `Plan.as_json`."""
    tasks: list[str]
    examples: int
    """Rows written."""
    counts: dict[str, int]
    """Of `flows.backfill.rows.ShardRows`, all shards together."""
    through_ms: int
    """Every window that ended here or before is closed; END_MS: all of the range are."""
    held_by: str
    """Of the inputs that ended before the range did, the one with the least event time."""
    left_open: int
    """Impressions of the range with a window that was not complete at the end."""
    events: dict[str, dict[str, int]]
    """Events read of each topic, by what became of them (flows/backfill/set_aside.py)."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        made: Plan,
        course: Course,
        state: Path,
        rows: Iterable[ShardRows],
    ) -> Result:
        """From the state at the end.

        Args:
            settings: of the backfill.
            made: its plan.
            course: of its inputs.
            state: folder of the join's.
            rows: what was written of each shard.
        """
        rows = list(rows)
        counts: Counter[str] = Counter()
        for mine in rows:
            counts.update(mine.counts)
        shards = saved_shards(recovery_folder(state)).values()
        done_ms = min((shard.state["done_ms"] for shard in shards), default=BEGIN_MS)
        pending = sum(pending_from(settings, made.from_ms, state, shard) for shard in shards)
        ended = done_ms + settings.das.bucket_ms > END_MS
        return cls(
            plan=made.as_json(),
            tasks=[task.name for task in settings.tasks],
            examples=sum(mine.total for mine in rows),
            counts=dict(counts),
            through_ms=END_MS if ended else done_ms,
            held_by="" if ended else course.held_by,
            left_open=pending + sum(course.left_open.values()),
            events=by_topic(course.judged),
        )

    @property
    def rejected_topics(self) -> dict[str, dict[str, int]]:
        """Of `events`: topics of which nothing was accepted, though there were events."""
        return {t: counts for t, counts in self.events.items() if reasons(counts) == counts != {}}

    @property
    def set_aside(self) -> dict[str, dict[str, int]]:
        """Of `events`: topics of which some were set aside."""
        return {topic: counts for topic, counts in self.events.items() if reasons(counts)}

    def as_json(self) -> dict[str, Any]:
        """Plain data; a time that is none is null."""
        complete = self.through_ms == END_MS
        through_ms = None if complete or self.through_ms == BEGIN_MS else self.through_ms
        return {**asdict(self), "complete": complete, "through_ms": through_ms}

    def tables(self, title: str) -> Group:
        """For people."""
        parts: list[Any] = [self._tasks(title)]
        for name in ("domain", "day"):
            parts.append(self._counted(name))
        if self.set_aside:
            parts.append(self._set_aside())
        if not self.examples and not self.left_open:
            parts.append("No impression of the range was in the log: there are no examples")
        if self.through_ms < END_MS:
            held = f", where the log of {self.held_by} ends" if self.held_by else ""
            through = "the beginning" if self.through_ms == BEGIN_MS else moment(self.through_ms)
            parts.append(
                f"Windows are closed through {through}{held}: {self.left_open:,} impressions of "
                "the range have windows that were not complete and are not in it"
            )
        return Group(*parts)

    def _tasks(self, title: str) -> Table:
        table = Table(title=title)
        for head in ("task", "examples", "positives", "rate"):
            table.add_column(head, justify="left" if head == "task" else "right")
        for task in self.tasks:
            num, positive = self._count(f"examples.{task}"), self._count(f"positives.{task}")
            table.add_row(
                task, f"{num:,}", f"{positive:,}", percent(positive / num if num else None)
            )
        table.add_section()
        table.add_row("all rows", f"{self.examples:,}", "", "")
        covered = self._count("covered")
        share = percent(covered / self.examples if self.examples else None)
        table.add_row("with a prediction", f"{covered:,}", "", share)
        table.add_row("megabytes", f"{self._count('bytes') / 1e6:,.1f}", "", "")
        return table

    def _counted(self, name: str) -> Table:
        table = Table(title=f"Rows by {name}")
        table.add_column(name)
        table.add_column("rows", justify="right")
        found = {k.partition(".")[2]: n for k, n in self.counts.items() if k.startswith(f"{name}.")}
        for key in sorted(found)[:MOST_DAYS]:
            table.add_row(key, f"{found[key]:,}")
        if len(found) > MOST_DAYS:
            table.add_row(f"{len(found) - MOST_DAYS} more", f"{sum(found.values()):,} in all")
        return table

    def _set_aside(self) -> Table:
        table = Table(title="Events that were set aside")
        for head in ("topic", "reason", "events", "share"):
            table.add_column(head, justify="right" if head in ("events", "share") else "left")
        for topic, counts in self.set_aside.items():
            for reason, number in reasons(counts).items():
                share = percent(number / sum(counts.values()))
                table.add_row(topic, reason, f"{number:,}", share)
        return table

    def _count(self, name: str) -> int:
        return self.counts.get(name, 0)


def pending_from(settings: Settings, from_ms: int, folder: Path, saved: SavedShard) -> int:
    """Impressions from `from_ms` on whose longest window is open, of one shard.

    Args:
        settings: of the backfill.
        from_ms: where its range begins.
        folder: of the join's state.
        saved: newest snapshot of the shard.
    """
    state = saved.state
    pending, open_ms = int(state["pending"]), state["open_ms"]
    if open_ms >= from_ms:
        return pending
    files = SegmentFolder(shards_folder(folder) / str(state["shard"]))
    shown = SegmentStore(files, "impressions", impression_schema(settings))
    repeats = SegmentStore(files, "repeats", REPEATS)
    for kind, store in (("impressions", shown), ("repeats", repeats)):
        store.restore(state["stores"][kind])
    return pending - shown.count(open_ms, from_ms) + repeats.count(open_ms, from_ms)
