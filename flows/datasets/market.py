"""A simulated ad market whose true probabilities are known.

Users see ads on several domains, click after a while, and convert later still. Popularity is
long-tailed, new ads arrive all the time, tastes drift. Users and ads are shared by the domains, so
a teacher that sees all of them knows more than a student of one. An impression carries what an
application would know at that time (a click counts once it has happened) and the true probability
that its label will be 1 within the task's window: the best that any model could predict.

Generation goes by ticks; a tick depends on the seed and on the ticks before it, nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from flows.datasets.market_factors import DEVICES, Factors, Floats, Ints, phases
from flows.records import LABELS, impression_columns
from flows.settings import Settings

CLICK = "click"
CONVERSION = "conversion"


class Market:
    """Impressions and their labels, slice of event time by slice of event time."""

    def __init__(self, settings: Settings, seed: int | None = None) -> None:
        """Draw the hidden state.

        Args:
            settings: `market`, the tasks `click` and perhaps `conversion`, the features to write.
            seed: in place of `market.seed`.

        Raises:
            ValueError: no domain, an unknown task, or a feature that the market does not know.
        """
        self._market = settings.market
        if not self._market.domains:
            raise ValueError("market.domains must name at least one domain, got none")
        unknown = sorted({t.name for t in settings.tasks} - {CLICK, CONVERSION})
        if unknown:
            raise ValueError(f"tasks: the market knows click and conversion, got {unknown}")
        self._windows_s = {t.name: t.window_s for t in settings.tasks}
        self._tasks = {t.name: i for i, t in enumerate(settings.tasks)}
        self._oracles = {t.oracle: t.name for t in settings.tasks if t.oracle}
        self._fields = impression_columns(settings)
        self._rng = np.random.default_rng(self._market.seed if seed is None else seed)
        self._factors = Factors(self._market, self._rng)
        self._known = Knowledge(self._market.users, self._market.history)
        self._num_impressions = 0
        self._next_ms: int | None = None

    @property
    def tick_ms(self) -> int:
        """Grain of generation; slices begin and end on its multiples."""
        return round(self._market.tick_s * 1000)

    def slice(self, start_ms: int, end_ms: int) -> tuple[pa.Table, pa.Table]:
        """Impressions of [start_ms, end_ms) by time, and the labels that they will get.

        Labels hold positives only and may lie far beyond `end_ms`.

        Raises:
            ValueError: the slice is not whole ticks, or does not follow the one before.
        """
        tick_ms = self.tick_ms
        if start_ms % tick_ms or end_ms % tick_ms:
            raise ValueError(f"slice [{start_ms}, {end_ms}) must be whole ticks of {tick_ms} ms")
        if self._next_ms is not None and start_ms != self._next_ms:
            raise ValueError(f"slice must follow the last at {self._next_ms}, got {start_ms}")
        self._next_ms = max(start_ms, end_ms)
        ticks = [self._tick(t) for t in range(start_ms, end_ms, tick_ms)]
        schema = pa.schema(self._fields)
        impressions = [schema.empty_table(), *(t[0] for t in ticks)]
        labels = [LABELS.empty_table(), *(t[1] for t in ticks)]
        return pa.concat_tables(impressions), pa.concat_tables(labels)

    def _tick(self, start_ms: int) -> tuple[pa.Table, pa.Table]:
        factors, rng, seconds = self._factors, self._rng, self._market.tick_s
        factors.advance(seconds)
        self._known.learn(start_ms, len(factors.category_A))
        specs = self._market.domains
        counts = [int(rng.poisson(d.rate_per_s * seconds)) for d in specs]
        domain = np.repeat(np.arange(len(specs)), counts)
        ts_ms = start_ms + rng.integers(self.tick_ms, size=len(domain))
        user = np.concatenate([factors.draw_users(d, n) for d, n in enumerate(counts)])
        ad = factors.draw_ads(len(domain))
        slot = np.concatenate(
            [rng.integers(d.slots, size=n) for d, n in zip(specs, counts, strict=True)]
        )
        parts = np.split(np.arange(len(domain)), np.cumsum(counts)[:-1])
        truth = [factors.logits(d, user[p], ad[p], slot[p], ts_ms[p]) for d, p in enumerate(parts)]
        p_click = sigmoid(np.concatenate([t[0] for t in truth]))
        p_buy = sigmoid(np.concatenate([t[1] for t in truth]))
        order = np.argsort(ts_ms, kind="stable")
        columns = {"domain": domain, "ts_ms": ts_ms, "user_id": user, "ad_id": ad, "slot": slot}
        columns = {name: values[order] for name, values in columns.items()}
        ids = pa.array([f"{start_ms:x}-{i}" for i in range(len(order))], pa.string())
        labels = self._outcomes(ids, columns, p_click[order], p_buy[order])
        table = self._table(ids, columns, p_click[order], p_buy[order])
        self._known.show(columns["user_id"], columns["ad_id"])
        return table, labels

    def _outcomes(
        self, ids: pa.Array, columns: dict[str, Any], p_click: Floats, p_buy: Floats
    ) -> pa.Table:
        rng, market = self._rng, self._market
        clicked = np.flatnonzero(rng.random(len(ids)) < p_click)
        wait_ms = rng.exponential(market.click_delay_s, len(clicked)) * 1000
        bought = rng.random(len(clicked)) < p_buy[clicked]
        wait_more_ms = rng.exponential(market.conversion_delay_s, len(clicked)) * 1000
        ts_ms = columns["ts_ms"][clicked]
        click_ms = ts_ms + wait_ms.astype(np.int64)
        buy_ms = ts_ms + (wait_ms + wait_more_ms).astype(np.int64)
        user, ad = columns["user_id"][clicked], columns["ad_id"][clicked]
        self._known.expect(click_ms, user, ad, self._factors.category_A[ad])
        rows = {CLICK: (clicked, click_ms), CONVERSION: (clicked[bought], buy_ms[bought])}
        tables = [
            labels_of(ids.take(pa.array(at)), self._tasks[name], times)
            for name, (at, times) in rows.items()
            if name in self._tasks
        ]
        return pa.concat_tables(tables)

    def _table(
        self, ids: pa.Array, columns: dict[str, Any], p_click: Floats, p_buy: Floats
    ) -> pa.Table:
        factors, known = self._factors, self._known
        user, ad = columns["user_id"], columns["ad_id"]
        names = np.array([d.name for d in self._market.domains])
        truth = {
            CLICK: p_click * self._click_in_window(),
            CONVERSION: p_click * p_buy * self._conversion_in_window(),
        }
        values = {
            **columns,
            "impression_id": ids,
            "domain": names[columns["domain"]],
            "advertiser": factors.advertiser_A[ad],
            "category": factors.category_A[ad],
            "device": DEVICES[factors.user_device_U[user]],
            "phase": phases(columns["ts_ms"]),
            "recent_ads": known.sequences(known.ads_UL, user),
            "recent_categories": known.sequences(known.categories_UL, user),
            "ad_impressions": known.ad_impressions_A[ad],
            "ad_clicks": known.ad_clicks_A[ad],
            "user_impressions": known.user_impressions_U[user],
            "user_clicks": known.user_clicks_U[user],
            **{oracle: truth[task] for oracle, task in self._oracles.items()},
        }
        missing = [f.name for f in self._fields if f.name not in values]
        if missing:
            raise ValueError(f"features: the market does not know {', '.join(missing)}")
        arrays = [pa.array(values[f.name]).cast(f.type) for f in self._fields]
        return pa.Table.from_arrays(arrays, schema=pa.schema(self._fields))

    def _click_in_window(self) -> float:
        return 1.0 - math.exp(-self._windows_s[CLICK] / self._market.click_delay_s)

    def _conversion_in_window(self) -> float:
        if CONVERSION not in self._windows_s:
            return 1.0
        window_s = self._windows_s[CONVERSION]
        return sum_below(window_s, self._market.click_delay_s, self._market.conversion_delay_s)


class Knowledge:
    """What the application knows: clicks that have happened, as histories and counters."""

    def __init__(self, users: int, history: int) -> None:
        self.ads_UL = np.full((users, history), -1, np.int64)
        self.categories_UL = np.full((users, history), -1, np.int64)
        self.user_impressions_U = np.zeros(users)
        self.user_clicks_U = np.zeros(users)
        self.ad_impressions_A = np.zeros(0)
        self.ad_clicks_A = np.zeros(0)
        self._expected: Ints = np.empty((0, 4), np.int64)

    def expect(self, ts_ms: Ints, user: Ints, ad: Ints, category: Ints) -> None:
        """Clicks that will become known at their time, each of shape [N]."""
        clicks = np.column_stack([ts_ms, user, ad, category]).astype(np.int64)
        self._expected = np.concatenate([self._expected, clicks])

    def learn(self, now_ms: int, num_ads: int) -> None:
        """Count the clicks up to `now_ms`, and make room for new ads."""
        grow = num_ads - len(self.ad_clicks_A)
        self.ad_clicks_A = np.append(self.ad_clicks_A, np.zeros(grow))
        self.ad_impressions_A = np.append(self.ad_impressions_A, np.zeros(grow))
        due = self._expected[:, 0] <= now_ms
        happened = self._expected[due]
        self._expected = self._expected[~due]
        happened = happened[np.argsort(happened[:, 0], kind="stable")]
        np.add.at(self.user_clicks_U, happened[:, 1], 1)
        np.add.at(self.ad_clicks_A, happened[:, 2], 1)
        for _, user, ad, category in happened.tolist():
            for history, newest in ((self.ads_UL[user], ad), (self.categories_UL[user], category)):
                history[1:] = history[:-1]
                history[0] = newest

    def show(self, user: Ints, ad: Ints) -> None:
        """Count impressions, each argument of shape [N]."""
        np.add.at(self.user_impressions_U, user, 1)
        np.add.at(self.ad_impressions_A, ad, 1)

    @staticmethod
    def sequences(history_UL: Ints, user: Ints) -> pa.ListArray:
        """Newest first, without padding, one list for each of `user`."""
        rows = history_UL[user]
        present = rows >= 0
        offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rows[present]))


def labels_of(ids: pa.Array, task: int, ts_ms: Ints) -> pa.Table:
    """Positive labels of one task."""
    count = len(ids)
    columns = [ids, np.full(count, task, np.int16), np.ones(count, np.int8), ts_ms]
    return pa.Table.from_arrays([pa.array(c) for c in columns], schema=LABELS)


def sigmoid(logits: Floats) -> Floats:
    """Probability of a logit."""
    probability: Floats = 1.0 / (1.0 + np.exp(-logits))
    return probability


def sum_below(bound: float, mean_a: float, mean_b: float) -> float:
    """Probability that the sum of two exponential waits stays below `bound`."""
    if math.isclose(mean_a, mean_b):
        return 1.0 - math.exp(-bound / mean_a) * (1.0 + bound / mean_a)
    late = mean_a * math.exp(-bound / mean_a) - mean_b * math.exp(-bound / mean_b)
    return 1.0 - late / (mean_a - mean_b)
