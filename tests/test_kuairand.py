"""KuaiRand-Pure from a small sample in its published format, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.datasets.kuairand import LARGE_TABS, tables
from flows.records import impression_columns
from flows.settings import Settings, load

CONFIG = Path(__file__).parents[1] / "configs" / "kuairand.toml"
START_MS = 1_650_812_741_000
ROWS, USERS, VIDEOS = 600, 12, 30


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(CONFIG)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """As `log_standard_4_22_to_5_08_pure.csv`."""
    rng = np.random.default_rng(0)
    flags = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
    times_ms = START_MS + np.sort(rng.integers(0, 3_600_000, ROWS)) // 1000 * 1000
    return pl.DataFrame(
        {
            "user_id": rng.integers(USERS, size=ROWS),
            "video_id": rng.integers(VIDEOS, size=ROWS),
            "date": np.full(ROWS, 20220425),
            "hourmin": np.full(ROWS, 1500),
            "time_ms": times_ms,
            "is_click": rng.integers(2, size=ROWS),
            **{flag: rng.integers(2, size=ROWS) for flag in flags},
            "long_view": rng.integers(2, size=ROWS),
            "play_time_ms": rng.integers(0, 900_000, ROWS),
            "duration_ms": rng.integers(1, 100_000, ROWS),
            "profile_stay_time": np.zeros(ROWS, np.int64),
            "comment_stay_time": np.zeros(ROWS, np.int64),
            "tab": rng.integers(15, size=ROWS),
            "is_rand": np.zeros(ROWS, np.int64),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, log: pl.DataFrame) -> Path:
    path = tmp_path_factory.mktemp("kuairand")
    pl.concat([log, log.head(3)]).write_csv(path / "log_standard_4_22_to_5_08_pure.csv")
    users = pl.DataFrame({"user_id": np.arange(USERS)})
    ranges = ("follow_user_num_range", "fans_user_num_range", "friend_user_num_range")
    users = users.with_columns(
        pl.lit("full_active").alias("user_active_degree"),
        pl.lit(0).alias("is_lowactive_period"),
        *(pl.lit("(0,10]").alias(name) for name in (*ranges, "register_days_range")),
        *((pl.col("user_id") % 3).alias(f"onehot_feat{i}") for i in range(18)),
    )
    users.write_csv(path / "user_features_pure.csv")
    videos = pl.DataFrame({"video_id": np.arange(VIDEOS)}).with_columns(
        (pl.col("video_id") // 3 + 100).alias("author_id"),
        pl.lit("NORMAL").alias("video_type"),
        pl.lit("2022-04-10").alias("upload_dt"),
        pl.lit("LongImport").alias("upload_type"),
        pl.lit(9.0).alias("music_type"),
        pl.lit("39,12").alias("tag"),
    )
    videos.write_csv(path / "video_features_basic_pure.csv")
    return path


@pytest.fixture(scope="module")
def impressions(folder: Path, settings: Settings) -> pl.DataFrame:
    made = pl.from_arrow(tables(folder, settings)[0])
    assert isinstance(made, pl.DataFrame)
    return made


def in_order(log: pl.DataFrame) -> pl.DataFrame:
    ids = pl.concat_str("user_id", "video_id", "time_ms", separator="-").alias("impression_id")
    return log.with_columns(ids).unique("impression_id").sort("time_ms", "impression_id")


def known_ms(row: dict[str, int], task: str) -> int | None:
    """When the label of a row becomes known, None if it is 0."""
    if task == "click":
        return row["time_ms"] if row["is_click"] else None
    return row["time_ms"] + row["play_time_ms"] if row["long_view"] else None


def test_kuairand_has_every_impression_once(
    impressions: pl.DataFrame, log: pl.DataFrame, settings: Settings
) -> None:
    assert impressions["impression_id"].to_list() == in_order(log)["impression_id"].to_list()
    assert impressions["ts_ms"].to_list() == in_order(log)["time_ms"].to_list()
    tabs = in_order(log)["tab"].to_list()
    domains = [f"tab_{tab}" if tab in LARGE_TABS else "tab_other" for tab in tabs]
    assert impressions["domain"].to_list() == domains
    assert set(domains) == set(settings.domains)


def test_kuairand_never_shows_an_outcome(settings: Settings) -> None:
    outcomes = ("is_click", "is_like", "long_view", "play_time_ms", "played_ms", "stay_time")
    for name in (field.name for field in impression_columns(settings)):
        assert not any(name == o or name.endswith(o) for o in outcomes)


@pytest.mark.parametrize("name", ["is_click", "long_view", "played_ms", "play_time_ms"])
def test_kuairand_refuses_an_outcome_as_feature(
    folder: Path, settings: Settings, name: str
) -> None:
    feature = settings.features[0].model_copy(update={"name": name})
    with pytest.raises(ValueError, match=f"KuaiRand has no {name}"):
        tables(folder, settings.model_copy(update={"features": (feature,)}))


def test_kuairand_labels_have_the_assumed_times(
    folder: Path, log: pl.DataFrame, settings: Settings
) -> None:
    labels = tables(folder, settings)[1]
    assert labels["ts_ms"].to_pylist() == sorted(labels["ts_ms"].to_pylist())
    expected = [
        (row["impression_id"], number, 1, when)
        for row in in_order(log).iter_rows(named=True)
        for number, task in enumerate(("click", "long_view"))
        if (when := known_ms(row, task)) is not None
    ]
    assert sorted(tuple(row.values()) for row in labels.to_pylist()) == sorted(expected)


@pytest.mark.parametrize("subject", ["user_id", "video_id"])
def test_kuairand_counts_only_what_was_known_before(
    impressions: pl.DataFrame, log: pl.DataFrame, subject: str
) -> None:
    rows = in_order(log).to_dicts()
    for made, row in zip(impressions.to_dicts(), rows, strict=True):
        mine = [r for r in rows if r[subject] == row[subject]]
        name = subject.removesuffix("_id")
        shown = [r for r in mine if r["time_ms"] < row["time_ms"]]
        assert made[f"{name}_impressions"] == len(shown)
        for task in ("click", "long_view"):
            times = [known_ms(r, task) for r in mine]
            known = [t for t in times if t is not None and t < row["time_ms"]]
            assert made[f"{name}_{task}s"] == len(known)


@pytest.mark.parametrize("task", ["click", "long_view"])
def test_kuairand_history_is_what_was_known_newest_first(
    impressions: pl.DataFrame, log: pl.DataFrame, task: str
) -> None:
    rows = in_order(log).to_dicts()
    for made, row in zip(impressions.to_dicts(), rows, strict=True):
        mine = [r for r in rows if r["user_id"] == row["user_id"]]
        known = [(t, r["video_id"]) for r in mine if (t := known_ms(r, task)) is not None]
        before = [k for k in sorted(known, key=lambda k: k[0]) if k[0] < row["time_ms"]]
        expected = [video for _, video in before[::-1]][:20]
        assert made[f"recent_{task}s"] == expected


def test_kuairand_history_begins_with_what_users_watched_before(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    watched = {"user_id": [0], "watch_seq": [[1, 2, 3]], "long_watch_seq": [[2]]}
    pl.DataFrame(watched).write_parquet(tmp_path / "orig_user_sequences.parquet")
    found = pl.from_arrow(tables(tmp_path, settings)[0])
    assert isinstance(found, pl.DataFrame)
    first = found.filter(pl.col("user_id") == 0).row(0, named=True)
    assert first["recent_clicks"] == [3, 2, 1]
    assert first["recent_long_views"] == [2]


def test_kuairand_names_what_is_missing(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ValueError, match="must hold a KuaiRand log"):
        tables(tmp_path, settings)
