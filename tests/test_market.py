"""The market: determinism, causality, and labels that follow the probabilities it states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.datasets.market import Market, sum_below
from flows.records import impression_columns
from flows.settings import Settings, load

CONFIG = Path(__file__).parents[1] / "configs" / "market.toml"
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(CONFIG)


@pytest.fixture(scope="module")
def minute(settings: Settings) -> tuple[pl.DataFrame, pl.DataFrame]:
    impressions, labels = Market(settings).slice(START_MS, START_MS + 60_000)
    return frame(impressions), frame(labels)


def frame(table: Any) -> pl.DataFrame:
    made = pl.from_arrow(table)
    assert isinstance(made, pl.DataFrame)
    return made


def labelled(
    settings: Settings, task: int, impressions: pl.DataFrame, labels: pl.DataFrame
) -> pl.DataFrame:
    known = labels.filter(pl.col("task") == task).select("impression_id", known_ms="ts_ms")
    waited = pl.col("known_ms") - pl.col("ts_ms")
    inside = (waited < settings.tasks[task].window_ms).fill_null(False)
    return impressions.join(known, on="impression_id", how="left").with_columns(label=inside)


def test_market_depends_on_the_seed_alone(settings: Settings) -> None:
    whole = Market(settings).slice(START_MS, START_MS + 4000)
    market = Market(settings)
    first = market.slice(START_MS, START_MS + 1000)
    second = market.slice(START_MS + 1000, START_MS + 4000)
    for one, *parts in zip(whole, first, second, strict=True):
        assert frame(one).equals(pl.concat(frame(p) for p in parts))
    other = Market(settings, seed=1).slice(START_MS, START_MS + 4000)
    assert not frame(other[0]).equals(frame(whole[0]))


def test_market_writes_the_configured_columns(settings: Settings) -> None:
    impressions, _ = Market(settings).slice(START_MS, START_MS + 1000)
    assert list(impressions.schema) == impression_columns(settings)


def test_market_impressions_are_sorted_unique_and_at_the_rates(
    settings: Settings, minute: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    impressions, labels = minute
    assert impressions["ts_ms"].is_sorted()
    assert impressions["impression_id"].is_unique().all()
    assert set(labels["impression_id"]) <= set(impressions["impression_id"])
    for domain in settings.market.domains:
        count = len(impressions.filter(pl.col("domain") == domain.name))
        expected = domain.rate_per_s * 60
        assert abs(count - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("task", [0, 1])
def test_market_labels_follow_the_stated_probabilities(
    settings: Settings, minute: tuple[pl.DataFrame, pl.DataFrame], task: int
) -> None:
    rows = labelled(settings, task, *minute)
    oracle = settings.tasks[task].oracle
    assert oracle is not None
    for group in rows.sort(oracle).iter_slices(len(rows) // 5):
        expected = group[oracle].to_numpy()
        spread = np.sqrt((expected * (1 - expected)).sum())
        assert abs(group["label"].to_numpy().sum() - expected.sum()) < 5 * spread + 1


def test_market_conversion_follows_its_click(
    settings: Settings, minute: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    _, labels = minute
    clicks = labels.filter(pl.col("task") == 0).select("impression_id", click_ms="ts_ms")
    bought = labels.filter(pl.col("task") == 1).join(clicks, on="impression_id", how="left")
    assert len(bought) > 1000
    assert (bought["ts_ms"] >= bought["click_ms"]).all()


def test_market_history_holds_only_clicks_that_have_happened(
    settings: Settings, minute: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    impressions, labels = minute
    tick_ms = Market(settings).tick_ms
    clicks = (
        labels.filter(pl.col("task") == 0)
        .select("impression_id", click_ms="ts_ms")
        .join(impressions.select("impression_id", "user_id", "ad_id"), on="impression_id")
        .sort("click_ms", maintain_order=True)
    )
    for row in impressions.tail(200).iter_rows(named=True):
        known_ms = row["ts_ms"] // tick_ms * tick_ms
        known = clicks.filter(
            (pl.col("user_id") == row["user_id"]) & (pl.col("click_ms") <= known_ms)
        )
        assert row["user_clicks"] == len(known)
        assert row["recent_ads"] == known["ad_id"].to_list()[::-1][:10]


def test_market_popularity_has_a_long_tail_and_new_ads(
    settings: Settings, minute: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    impressions, _ = minute
    counts = np.sort(impressions["ad_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()
    assert impressions["ad_id"].to_numpy().max() >= settings.market.ads


def test_market_refuses_a_slice_out_of_turn(settings: Settings) -> None:
    market = Market(settings)
    market.slice(START_MS, START_MS + 1000)
    with pytest.raises(ValueError, match="must follow the last"):
        market.slice(START_MS, START_MS + 1000)
    with pytest.raises(ValueError, match="whole ticks"):
        market.slice(START_MS + 1000, START_MS + 1001)


def test_sum_of_two_waits_follows_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for mean_a, mean_b in ((2.0, 5.0), (3.0, 3.0)):
        waits = rng.exponential(mean_a, 100_000) + rng.exponential(mean_b, 100_000)
        assert abs(sum_below(10.0, mean_a, mean_b) - (waits < 10.0).mean()) < 0.01
