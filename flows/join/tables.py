"""The state of the join for people: shards, their inputs, files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from flows.join.inspection import Input, Inspection, ShardView
from flows.join.watermarks import ENDED, IDLE, REJOINING, SILENT, WAITED_FOR
from flows.wording import duration, moment, number

MOST_SHARDS = 8
"""Whose inputs are shown unless one is asked for."""
WHY = {
    WAITED_FOR: "waited for",
    ENDED: "its log has ended",
    IDLE: "idle: read to its end and silent",
    SILENT: "silent: the teacher is too far behind",
    REJOINING: "rejoining: behind what is closed",
}


def inspection_tables(found: Inspection, name: str, shard: int | None = None) -> Group:
    """All tables of a run.

    Args:
        found: what there is.
        name: of the run.
        shard: whose inputs to show; None: of the shards that are farthest behind.
    """
    chosen = [s for s in found.shards if s.shard == shard or (shard is None and not s.ended)]
    chosen = sorted(chosen, key=lambda s: s.closed_ms or 0)[:MOST_SHARDS]
    inputs = [inputs_table(sorted(chosen, key=lambda s: s.shard))] if chosen else []
    damaged = [damaged_table(found)] if found.damaged else []
    return Group(shards_table(found, name), *inputs, stores_table(found), *damaged)


def shards_table(found: Inspection, name: str) -> Table:
    """What each shard waits with, and for which input."""
    live = f"live: {', '.join(found.live)}" if found.live else "no process answers"
    table = Table(title=f"Join of {name}, {live}", caption=missing(found))
    for head in ("shard", "pending", "oldest pending", "its age", "closed through"):
        table.add_column(head, justify="right" if head in ("pending", "its age") else "left")
    for head in ("held back by", "not waited for", "as of"):
        table.add_column(head)
    for view in found.shards:
        age_s = view.oldest_age_s
        table.add_row(
            *(str(view.shard), number(view.pending, 0), time_of(view.oldest_ms)),
            *(
                "-" if age_s is None else duration(age_s),
                "end" if view.ended else time_of(view.closed_ms),
            ),
            *(held_back(view), left_out(view)),
            "now" if view.saved_at is None else f"snapshot of {view.saved_at}",
        )
    return table


def missing(found: Inspection) -> str | None:
    """How many shards have nothing to show."""
    num = found.num_shards - len(found.shards)
    return f"{num} of {found.num_shards} shards have not begun" if num > 0 else None


def inputs_table(views: Sequence[ShardView]) -> Table:
    """The watermark of each input of some shards."""
    table = Table(title="Inputs")
    for head in ("shard", "input", "watermark", "ahead of closed", "standing"):
        table.add_column(head, justify="right" if head == "ahead of closed" else "left")
    for view in views:
        holder = view.holder
        for position, found in enumerate(view.inputs):
            last = position == len(view.inputs) - 1
            mark = ", holds the shard back" if found is holder else ""
            table.add_row(
                *(str(view.shard), found.name, watermark(found), ahead(found, view)),
                WHY[found.standing] + mark,
                end_section=last,
            )
    return table


def stores_table(found: Inspection) -> Table:
    """What lies on disk."""
    table = Table(title="On disk")
    for head in ("rows of", "segments", "MB"):
        table.add_column(head, justify="left" if head == "rows of" else "right")
    for store in found.stores:
        table.add_row(store.kind, number(store.segments, 0), number(store.num_bytes / 1e6, 2))
    table.add_row("recovery store", "", number(found.recovery_bytes / 1e6, 2))
    return table


def damaged_table(found: Inspection) -> Table:
    """What the join could not go on from."""
    table = Table("what is wrong", title="Gone or damaged")
    for wrong in found.damaged:
        table.add_row(wrong)
    return table


def held_back(view: ShardView) -> str:
    """The input with the least watermark of those that are waited for."""
    if view.holder is not None:
        nothing = ", of which nothing was read" if view.holder.watermark_ms is None else ""
        return f"{view.holder.name}{nothing}"
    return "nothing: all logs have ended" if view.ended else "nothing: all are silent"


def left_out(view: ShardView) -> str:
    """Inputs that the shard goes on without."""
    return ", ".join(
        f"{i.name} {i.standing}" for i in view.inputs if i.standing not in (WAITED_FOR, ENDED)
    )


def watermark(found: Input) -> str:
    """An input's event time."""
    if found.standing == ENDED:
        return "end"
    return "nothing read" if found.watermark_ms is None else moment(found.watermark_ms)


def ahead(found: Input, view: ShardView) -> str:
    """How far an input is ahead of its shard, in event time."""
    if found.watermark_ms is None or view.closed_ms is None:
        return "-"
    ahead_ms = found.watermark_ms - view.closed_ms
    if found.standing == WAITED_FOR:  # the shard may have closed since it told of its inputs
        ahead_ms = max(0, ahead_ms)
    return f"{ahead_ms / 1000:+,.1f} s"


def time_of(ts_ms: int | None) -> str:
    """An event time, or a dash."""
    return "-" if ts_ms is None else moment(ts_ms)
