"""What the labels of an impression lead to, under the policies of their tasks. A pure function.

Labels of an impression and task are taken in the order in which they become known: (known_ms,
ts_ms, value). One lies *inside* the window if shown <= ts < closed, and it is known by the close.
The label in force is the first inside by (ts, value), or the newest, by `repeated_labels`; a
positive that was in force stays if `early` and not the newest counts.

- An early row leaves when the label in force becomes 1 before the close; of a conditional task,
  when that of its condition is 1 too.
- Else the task is decided when its window closes; a conditional task whose condition is not met,
  when the window of the condition closes, with label 0.
- Behind either, each label that contradicts what was emitted last is a correction: inside the
  window, after an early row, if repeated labels correct; behind the end of the wait, if late
  labels do.

An impression that came late (live only) counts from `born_ms` on: what would have left before
leaves then, and a task whose wait was over has no example of it.
"""

from __future__ import annotations

import polars as pl

from flows.join.label_rules import NO_CONDITION, LabelRules

GROUP = ["item", "task"]
COLUMNS = ["item", "shown_ms", "born_ms", "task", "known_ms", "ts_ms", "value", "label_at"]
"""What `sequences` reads; `item` names an impression, `label_at` a label."""


def sequences(pairs: pl.DataFrame, rules: LabelRules) -> pl.DataFrame:
    """Labels in the order in which they become known, with what is in force behind each.

    Args:
        pairs: `COLUMNS`: each label (none before its impression) with its impression.
        rules: of the tasks.

    Returns:
        Also the columns of `rules.table`, closed_ms, inside, step (number within the group), met
        (1: the condition is in force) and bought (1: the task's own label is). A conditional task's
        group also holds the labels of its condition, with own = 0.
    """
    inside = (pl.col("ts_ms") < pl.col("closed_ms")) & (pl.col("known_ms") <= pl.col("closed_ms"))
    key = pl.when("inside").then(pl.col("ts_ms") * 2 + pl.col("value"))
    first = (key.cum_min().over(GROUP) & 1).cast(pl.Int8)
    ordered = (
        with_rules(pairs, rules)
        .sort(*GROUP, "known_ms", "ts_ms", "value")
        .with_columns(inside=inside)
        .with_columns(
            state=pl.when("newest").then(pl.when("inside").then("value")).otherwise(first)
        )
    )
    sticky = pl.col("early") & ~pl.col("newest")
    ordered = ordered.with_columns(
        state=pl.when(sticky).then(pl.col("state").cum_max().over(GROUP)).otherwise("state")
    ).select(*COLUMNS, "inside", "state")
    none = pl.lit(None, pl.Int8)
    parts = [ordered.with_columns(own=pl.lit(1), bought="state", met=none)]
    for task, condition in rules.conditions:
        of_condition = ordered.filter(pl.col("inside") & (pl.col("task") == condition))
        column = pl.lit(task, pl.Int16)
        parts.append(
            of_condition.with_columns(own=pl.lit(0), bought=none, met="state", task=column)
        )
    events = with_rules(pl.concat(parts, how="diagonal"), rules)
    events = events.sort(*GROUP, "known_ms", "own", "ts_ms", "value")
    last = [pl.col(name).forward_fill().over(GROUP).fill_null(0) for name in ("met", "bought")]
    return events.with_columns(*last, step=pl.int_range(pl.len()).over(GROUP)).with_columns(
        met=pl.when(pl.col("condition_ms") == NO_CONDITION).then(1).otherwise("met")
    )


def decisions(events: pl.DataFrame) -> pl.DataFrame:
    """How each group of `sequences` is decided.

    Returns:
        item, task, met, early_ms and early_step (null: no early row), close_ms (null: none) and
        label of the row of the window, end_ms: labels behind it are late. No group that the
        impression came too late for.
    """
    positive = (pl.col("met") == 1) & (pl.col("bought") == 1)
    same = ("shown_ms", "born_ms", "closed_ms", "condition_ms", "early")
    groups = events.group_by(GROUP, maintain_order=True).agg(
        *(pl.col(name).first() for name in same),
        *(pl.col(name).last() for name in ("met", "bought")),
        early_ms=pl.col("known_ms").filter(positive).first(),
        early_step=pl.col("step").filter(positive).first(),
    )
    early_ms = pl.max_horizontal("early_ms", "born_ms")
    is_early = (
        pl.col("early") & pl.col("early_step").is_not_null() & (early_ms < pl.col("closed_ms"))
    )
    condition_ms = pl.col("shown_ms") + pl.col("condition_ms")
    unmet = (pl.col("met") == 0) & (condition_ms >= pl.col("born_ms"))
    return (
        groups.with_columns(early_ms=pl.when(is_early).then(early_ms))
        .with_columns(
            end_ms=pl.when(pl.col("early_ms").is_null() & unmet)
            .then(condition_ms)
            .otherwise("closed_ms")
        )
        .filter(pl.col("born_ms") <= pl.col("end_ms"))
        .with_columns(
            close_ms=pl.when(pl.col("early_ms").is_null()).then("end_ms"),
            label=(pl.col("met") & pl.col("bought")).cast(pl.Int8),
        )
        .select(*GROUP, "met", "early_ms", "early_step", "close_ms", "label", "end_ms")
    )


def judged(events: pl.DataFrame, decided: pl.DataFrame) -> pl.DataFrame:
    """The tasks' own labels beside their group's decision, in order, and whether they are late."""
    late = (pl.col("ts_ms") >= pl.col("end_ms")) | (pl.col("known_ms") > pl.col("end_ms"))
    own = events.filter(pl.col("own") == 1).drop("met")
    joined = own.join(decided, on=GROUP, how="inner", maintain_order="left")
    return joined.with_columns(late=late)


def extra_rows(labels: pl.DataFrame, decided: pl.DataFrame) -> pl.DataFrame:
    """Early rows and corrections.

    Args:
        labels: what `judged` returned.
        decided: what `decisions` returned.

    Returns:
        item, task, closed_ms, label, correction: 0 of early rows, 1, 2, ... of corrections.
    """
    early = decided.filter(pl.col("early_ms").is_not_null()).select(
        *GROUP, closed_ms="early_ms", label=pl.lit(1, pl.Int8), correction=pl.lit(0, pl.Int64)
    )
    in_time = pl.col("known_ms") < pl.col("end_ms") + pl.col("horizon_ms")
    behind_early = pl.col("early_ms").is_not_null() & (pl.col("step") > pl.col("early_step"))
    follows = ~pl.col("late") & pl.col("newest") & behind_early
    start = pl.when(pl.col("early_ms").is_null()).then("label").otherwise(1)
    before = pl.col("value").shift(1).over(GROUP).fill_null(start)
    changes = (
        labels.filter((pl.col("late") & pl.col("corrects") & in_time) | follows)
        .filter(pl.col("value") != before)
        .select(
            *GROUP,
            closed_ms=pl.max_horizontal("known_ms", "born_ms"),
            label="value",
            correction=pl.int_range(1, pl.len() + 1).over(GROUP),
        )
    )
    return pl.concat([early, changes])


def with_rules(pairs: pl.DataFrame, rules: LabelRules) -> pl.DataFrame:
    """Pairs beside the rules of their task, and the end of its window."""
    closed_ms = pl.col("shown_ms") + pl.col("window_ms")
    return pairs.join(rules.table, on="task", how="left").with_columns(closed_ms=closed_ms)
