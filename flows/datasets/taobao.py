"""Taobao UserBehavior as impressions and labels: page views, and what the viewer did with the item.

Source: Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018 (data set
"User Behavior Data from Taobao for Recommendation", Alibaba Cloud Tianchi).

An impression is a page view. An action (cart, favourite, buy) is credited to the viewer's last
view of the same item before it or in the same second, however long before; an action without such a
view is nobody's label. A task `buy_1h` or `buy_1d` counts a purchase within that window of the
view; both are fed by the same purchases. There are no impressions without a view, so no negatives
of a click.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from flows.datasets.dataset import (
    CHINA_MS,
    HOUR_MS,
    arrow_columns,
    check_tasks,
    impressions_of,
    labels_of,
)
from flows.settings import Settings

EVENTS = "events.csv.gz"
"""Columns user_id, item_id, category_id, behavior, ts (seconds)."""
ACTIONS = ("cart", "fav", "buy")
VIEW = "pv"
WINDOWS_S = {"1h": 3600, "1d": 86_400}
TASKS = tuple(f"{action}_{window}" for action in ACTIONS for window in WINDOWS_S)
KEYS = ["user_id", "item_id"]


def tables(folder: Path, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """All page views by time, and their positive labels by time.

    Args:
        folder: holds `events.csv.gz`.
        settings: features to write, tasks among `TASKS`.

    Raises:
        ValueError: the file is missing, or a feature or task is not in the data.
    """
    check_tasks(settings, TASKS, "Taobao")
    for task in settings.tasks:
        named_s = WINDOWS_S[task.name.rpartition("_")[2]]
        if task.window_s != named_s:
            raise ValueError(f"tasks.{task.name}.window_s must be {named_s}, got {task.window_s:g}")
    events = read_events(folder)
    seen = views(events)
    actions = {action: credited(events, seen, action) for action in ACTIONS}
    positives = [actions[task.name.rpartition("_")[0]] for task in settings.tasks]
    return impressions_of(arrow_columns(seen), settings, "Taobao"), labels_of(positives)


def read_events(folder: Path) -> pl.DataFrame:
    """What each user did: user_id, item_id, category_id, behavior, ts_ms."""
    path = folder / EVENTS
    if not path.is_file():
        raise ValueError(f"{folder} must hold {EVENTS}")
    ts_ms = (pl.col("ts") * 1000).round().cast(pl.Int64).alias("ts_ms")
    return pl.read_csv(path).select(*KEYS, "category_id", "behavior", ts_ms)


def views(events: pl.DataFrame) -> pl.DataFrame:
    """Page views by time; of one user's views of an item in the same second, one."""
    second = pl.col("ts_ms") // 1000
    return (
        events.filter(pl.col("behavior") == VIEW)
        .unique([*KEYS, "ts_ms"], keep="first", maintain_order=True)
        .select(
            pl.concat_str(*KEYS, second, separator="-").alias("impression_id"),
            pl.lit("taobao").alias("domain"),
            *("ts_ms", *KEYS, "category_id"),
            ((pl.col("ts_ms") + CHINA_MS) // HOUR_MS % 24).alias("hour"),
        )
        .sort("ts_ms", "impression_id")
    )


def credited(events: pl.DataFrame, seen: pl.DataFrame, action: str) -> pl.DataFrame:
    """Actions with the last view of the item before them: impression_id, known_ms."""
    acted = events.filter(pl.col("behavior") == action).sort("ts_ms")
    return (
        acted.select(*KEYS, "ts_ms")
        .join_asof(
            seen.select(*KEYS, "ts_ms", "impression_id"),
            on="ts_ms",
            by=KEYS,
            strategy="backward",
            check_sortedness=False,
        )
        .drop_nulls("impression_id")
        .select("impression_id", known_ms="ts_ms")
    )
