"""KuaiRand-Pure as impressions and labels.

Source: Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed
Videos", CIKM 2022. Each scenario (`tab`) of some size is a domain, the others share `tab_other`.

Assumptions, since the log has no label times: `time_ms` is when the view starts; a click is known
at that moment, a long view when the play ends, at `time_ms + play_time_ms`. A feature knows only
what was known strictly before its impression. Outcomes (`is_*`, `long_view`, play and stay times)
are labels or nothing, never features.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from flows.datasets.dataset import (
    CHINA_MS,
    DAY_MS,
    HOUR_MS,
    arrow_columns,
    check_tasks,
    impressions_of,
    labels_of,
)
from flows.datasets.known_so_far import Ints, count_before, last_before
from flows.settings import Settings

LARGE_TABS = (0, 1, 2, 4, 6)
OUTCOMES = {"click": "is_click", "long_view": "long_view"}
"""Column of the log that holds a task's label."""
LOG_COLUMNS = [
    *("user_id", "video_id", "time_ms", "is_click", "long_view"),
    *("play_time_ms", "duration_ms", "tab"),
]
LOGS = ("events.csv.gz", "events.csv", "log_standard_*_pure.csv*")
"""Names under which the log is looked for; the first that matches counts."""
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
SEQUENCES = "orig_user_sequences.parquet"
"""What each user watched before the log begins; used if it is there."""


def tables(folder: Path, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """All impressions by time, and their positive labels by the time they become known.

    Args:
        folder: holds the log and the two feature files as published.
        settings: features to write, tasks `click` and/or `long_view`.

    Raises:
        ValueError: a file is missing, or a feature or task is not in the data.
    """
    check_tasks(settings, OUTCOMES, "KuaiRand")
    log = read_log(folder)
    rows = add_sides(log, folder).sort("ts_ms", "impression_id")
    longest = max([f.max_length for f in settings.features], default=1)
    columns = {**columns_of(rows), **histories(rows, warm_start(folder), longest)}
    columns.update({name: pa.array(values) for name, values in counters(rows).items()})
    positives = [known_positives(rows, task.name) for task in settings.tasks]
    return impressions_of(columns, settings, "KuaiRand"), labels_of(positives)


def read_log(folder: Path) -> pl.DataFrame:
    """The log with ids, domains and times; repeated rows are dropped."""
    paths = next((found for name in LOGS if (found := sorted(folder.glob(name)))), [])
    if not paths:
        raise ValueError(f"{folder} must hold a KuaiRand log, one of {', '.join(LOGS)}")
    log = pl.concat([pl.read_csv(path, columns=LOG_COLUMNS) for path in paths])
    large = pl.col("tab").is_in(LARGE_TABS)
    number = pl.col("tab").cast(pl.String)
    return log.unique(["user_id", "video_id", "time_ms"], keep="first", maintain_order=True).select(
        pl.concat_str("user_id", "video_id", "time_ms", separator="-").alias("impression_id"),
        pl.concat_str(pl.lit("tab_"), pl.when(large).then(number).otherwise(pl.lit("other"))).alias(
            "domain"
        ),
        pl.col("time_ms").alias("ts_ms"),
        (pl.col("time_ms") + pl.col("play_time_ms").clip(0)).alias("played_ms"),
        *("user_id", "video_id", "tab", "is_click", "long_view", "duration_ms"),
    )


def add_sides(log: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """The log joined with what is known of its users and videos."""
    for name in (USERS, VIDEOS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} must hold {name}")
    users = pl.read_csv(folder / USERS)
    videos = pl.read_csv(folder / VIDEOS, try_parse_dates=True)
    rows = log.join(users, on="user_id", how="left").join(videos, on="video_id", how="left")
    china = (pl.col("ts_ms") + CHINA_MS).alias("china_ms")
    uploaded_day = pl.col("upload_dt").cast(pl.Date).cast(pl.Int32).cast(pl.Int64)
    return rows.with_columns(china).with_columns(
        hour=pl.col("china_ms") // HOUR_MS % 24,
        weekday=pl.col("china_ms") // DAY_MS % 7,
        age_days=pl.col("china_ms") // DAY_MS - uploaded_day,
        duration_bucket=(pl.col("duration_ms").clip(1).log(2) * 2).floor().cast(pl.Int64),
        duration_s=pl.col("duration_ms") / 1000,
        first_tag=pl.col("tag").cast(pl.String).str.split(",").list.first(),
    )


def columns_of(rows: pl.DataFrame) -> dict[str, pa.Array]:
    """Columns that may become features, by name; no outcomes."""
    hidden = {*OUTCOMES.values(), "played_ms", "china_ms"}
    return arrow_columns(rows.select(c for c in rows.columns if c not in hidden))


def warm_start(folder: Path) -> pl.DataFrame:
    """Videos that users watched before the log, oldest first: user_id, video_id, outcome."""
    path = folder / SEQUENCES
    schema = pl.Schema({"user_id": pl.Int64, "video_id": pl.Int64, "outcome": pl.String})
    if not path.is_file():
        return pl.DataFrame(schema=schema)
    sequences = pl.read_parquet(path)
    return pl.concat(
        sequences.select("user_id", pl.col(column).alias("video_id"), pl.lit(name).alias("outcome"))
        .explode("video_id")
        .drop_nulls()
        for name, column in (("click", "watch_seq"), ("long_view", "long_watch_seq"))
    ).cast(schema)


def histories(rows: pl.DataFrame, before: pl.DataFrame, length: int) -> dict[str, pa.ListArray]:
    """Videos that a user clicked or viewed long, as known at each row, newest first."""
    found = {}
    for task in OUTCOMES:
        earlier = before.filter(pl.col("outcome") == task).select(
            "user_id", pl.lit(0, pl.Int64).alias("known_ms"), "video_id"
        )
        known = pl.concat([earlier, known_positives(rows, task).select(earlier.columns)])
        found[f"recent_{task}s"] = last_before(rows, "user_id", known, "video_id", length)
    return found


def known_positives(rows: pl.DataFrame, task: str) -> pl.DataFrame:
    """Rows whose label is 1, with the time at which it becomes known."""
    when = pl.col("ts_ms") if task == "click" else pl.col("played_ms")
    return rows.filter(pl.col(OUTCOMES[task]) == 1).with_columns(known_ms=when)


def counters(rows: pl.DataFrame) -> dict[str, Ints]:
    """Impressions and positives so far of a user, a video, an author, and of these in a domain."""
    found = {}
    shown = rows.with_columns(known_ms=pl.col("ts_ms"))
    for subject, keys in (
        ("user", ["user_id"]),
        ("video", ["video_id"]),
        ("author", ["author_id"]),
        ("user_domain", ["user_id", "domain"]),
        ("video_domain", ["video_id", "domain"]),
    ):
        found[f"{subject}_impressions"] = count_before(rows, keys, shown)
        for task in OUTCOMES:
            known = known_positives(rows, task)
            found[f"{subject}_{task}s"] = count_before(rows, keys, known)
    return found
