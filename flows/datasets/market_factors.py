"""What the simulated market knows and no model sees: tastes, appeal, popularity, and their drift.

Shape legend: U users, A ads ever seen, F hidden factors, D domains, C categories, N impressions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flows.event_settings import Market

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
DEVICES = np.array(["phone", "desktop", "tablet"])
DEVICE_SHARES = (0.65, 0.25, 0.10)
PHASE_MS = 10_000
"""Length of a market hour: a market day of 24 of them passes in four minutes."""


class Factors:
    """Hidden state of the market; users and ads are shared by all domains."""

    def __init__(self, market: Market, rng: np.random.Generator) -> None:
        self._market = market
        self._rng = rng
        users, factors = market.users, market.factors
        domains, categories = len(market.domains), market.categories
        self.user_UF = rng.standard_normal((users, factors))
        self.user_appetite_U = rng.standard_normal(users)
        self.user_device_U = rng.choice(len(DEVICES), size=users, p=DEVICE_SHARES)
        lean_DU = np.exp(rng.standard_normal((domains, users)))
        visits_DU = zipf(rng, users, market.user_exponent) * lean_DU
        self._visits_DU = np.cumsum(visits_DU, axis=1)
        self.category_CF = rng.standard_normal((categories, factors))
        self.advertiser_appeal = rng.standard_normal(market.advertisers)
        self.liking_DC = rng.standard_normal((domains, categories))
        self.device_liking = rng.standard_normal((domains, len(DEVICES)))
        self._advertiser_category = rng.integers(categories, size=market.advertisers)
        self.advertiser_A: Ints = np.empty(0, np.int64)
        self.category_A: Ints = np.empty(0, np.int64)
        self.ad_AF: Floats = np.empty((0, factors))
        self.quality_A: Floats = np.empty(0)
        self._popularity_A: Floats = np.empty(0)
        self._due_ads = 0.0
        self._add_ads(market.ads)

    def advance(self, seconds: float) -> None:
        """Let hidden state drift, popularity fade and new ads arrive."""
        market = self._market
        share = min(market.drift_per_minute * seconds / 60.0, 1.0)
        for values in (self.user_UF, self.user_appetite_U, self.quality_A, self.ad_AF):
            values *= np.sqrt(1.0 - share)
            values += np.sqrt(share) * self._rng.standard_normal(values.shape)
        self._popularity_A *= np.exp(-seconds / market.ad_life_s)
        self._due_ads += market.new_ads_per_s * seconds
        arrived = int(self._due_ads)
        self._due_ads -= arrived
        self._add_ads(arrived)

    def draw_users(self, domain: int, count: int) -> Ints:
        """Users who come to a domain, by how much they like it, shape [N]."""
        return draw(self._rng, self._visits_DU[domain], count)

    def draw_ads(self, count: int) -> Ints:
        """Ads shown, by popularity, shape [N]."""
        return draw(self._rng, np.cumsum(self._popularity_A), count)

    def logits(
        self, domain: int, users: Ints, ads: Ints, slots: Ints, ts_ms: Ints
    ) -> tuple[Floats, Floats]:
        """True logits of a click, and of a conversion after it, each of shape [N]."""
        market, spec = self._market, self._market.domains[domain]
        category = self.category_A[ads]
        centre = self.category_CF[category]
        own = self.ad_AF[ads]
        ad = np.sqrt(1 - market.ad_spread) * centre + np.sqrt(market.ad_spread) * own
        taste = (self.user_UF[users] * ad).sum(axis=1) / np.sqrt(market.factors)
        device = self.device_liking[domain, self.user_device_U[users]]
        phase = np.sin(2 * np.pi * phases(ts_ms) / 24)
        click = (
            spec.click_bias
            + market.taste_scale * taste
            + market.user_scale * self.user_appetite_U[users]
            + market.quality_scale * self.quality_A[ads]
            + market.context_scale * (self.liking_DC[domain, category] + device + phase)
            - 0.1 * slots
        )
        conversion = (
            spec.conversion_bias
            + 0.5 * market.taste_scale * taste
            + market.quality_scale * self.advertiser_appeal[self.advertiser_A[ads]]
        )
        return click, conversion

    def _add_ads(self, count: int) -> None:
        market, rng = self._market, self._rng
        advertiser = rng.integers(market.advertisers, size=count)
        elsewhere = rng.integers(market.categories, size=count)
        at_home = rng.random(count) < 0.8
        category = np.where(at_home, self._advertiser_category[advertiser], elsewhere)
        rank = 1.0 + rng.integers(market.ads, size=count)
        self.advertiser_A = np.append(self.advertiser_A, advertiser)
        self.category_A = np.append(self.category_A, category)
        self.ad_AF = np.vstack([self.ad_AF, rng.standard_normal((count, market.factors))])
        self.quality_A = np.append(self.quality_A, rng.standard_normal(count))
        self._popularity_A = np.append(self._popularity_A, np.power(rank, -market.ad_exponent))


def phases(ts_ms: Ints) -> Ints:
    """Hour of the market's day, 0 to 23, shape [N]."""
    hours: Ints = ts_ms // PHASE_MS % 24
    return hours


def zipf(rng: np.random.Generator, count: int, exponent: float) -> Floats:
    """Weights 1 / rank ** exponent in random order, shape [count]."""
    weights: Floats = np.power(1.0 + rng.permutation(count), -exponent)
    return weights


def draw(rng: np.random.Generator, cumulative: Floats, count: int) -> Ints:
    """Positions drawn by weight, given the running sum of the weights, shape [count]."""
    at: Ints = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return at
