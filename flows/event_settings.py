"""What made-up events look like: the sections `[market]` and `[noise]` of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flows.durations import Seconds
from models.schema import Name, Value

Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Scale = Annotated[float, Field(ge=0)]


class MarketDomain(Value):
    """One surface of the simulated market."""

    name: Name
    rate_per_s: Positive = 500.0
    """Impressions a second, Poisson."""
    click_bias: float = -1.5
    """Logit of a click for an average user, ad and slot."""
    conversion_bias: float = -1.0
    """Logit of a conversion after such a click."""
    slots: Annotated[int, Field(ge=1, le=100)] = 8
    """Positions on the surface; lower ones are clicked less."""


class Market(Value):
    """The simulated ad market; scales are standard deviations in logits."""

    domains: tuple[MarketDomain, ...] = ()
    users: Annotated[int, Field(ge=1)] = 3000
    ads: Annotated[int, Field(ge=1)] = 600
    """Ads at the start; new ones arrive all the time."""
    new_ads_per_s: Scale = 1.0
    ad_life_s: Seconds = 600.0
    """An ad's popularity decays by e in this time."""
    advertisers: Annotated[int, Field(ge=1)] = 80
    categories: Annotated[int, Field(ge=1)] = 24
    factors: Annotated[int, Field(ge=1, le=256)] = 6
    """Length of the hidden vectors of users and ads."""
    user_exponent: Scale = 0.6
    """Zipf exponent of how often users come."""
    ad_exponent: Scale = 0.8
    """Zipf exponent of how often ads are shown."""
    taste_scale: Scale = 1.0
    """Of the dot product of a user's and an ad's hidden vectors."""
    user_scale: Scale = 0.5
    quality_scale: Scale = 0.5
    """Of an ad's own appeal."""
    context_scale: Scale = 0.3
    """Of what only one domain has: its own liking for categories."""
    ad_spread: Rate = 0.5
    """Share of an ad's hidden variance that its category does not explain."""
    drift_per_minute: Rate = 0.1
    """Share of hidden variance renewed in a minute."""
    click_delay_s: Seconds = 2.0
    """Mean of the exponential delay of a click."""
    conversion_delay_s: Seconds = 5.0
    """Mean of the exponential delay of a conversion after its click."""
    history: Annotated[int, Field(ge=1, le=100)] = 10
    """Clicked ads remembered of a user."""
    tick_s: Seconds = 0.25
    """Grain of generation: within a tick, nothing new is known and nothing drifts."""
    seed: int = 0

    @model_validator(mode="after")
    def _domains_differ(self) -> Market:
        names = [d.name for d in self.domains]
        if len(set(names)) < len(names):
            raise ValueError(f"domains: each name once, got {', '.join(names)}")
        return self


class Noise(Value):
    """What a real log holds besides clean events; rates are shares of the clean ones."""

    orphan_labels: Rate = 0.0
    """Labels of impressions that never were."""
    repeated_labels: Rate = 0.0
    repeated_impressions: Rate = 0.0
    late_labels: Rate = 0.0
    """Labels written `late_by_s` of event time too late."""
    late_by_s: Seconds = 30.0
    malformed: Rate = 0.0
    """Broken messages, on both topics, besides the good ones."""
    seed: int = 0
