"""Keeps the inputs of the join together in event time, so that the state stays bounded.

A source pauses while its watermark is further ahead of what the shards of this process have closed
than the longest window and a little more. The input that holds the others back is never ahead, so
it never pauses, and nobody waits for ever. It decides when rows are read, not what they mean.
A process without a shard would never pause: none is started (`insist_on_shards` of routing.py).
"""

from __future__ import annotations

from flows.settings import Settings

MIN_AHEAD_MS = 10_000
BUCKETS_AHEAD = 16


class ReadAhead:
    """What the shards of this process have closed."""

    def __init__(self, settings: Settings) -> None:
        lateness = (settings.topics.impressions.lateness_ms, settings.topics.labels.lateness_ms)
        grain_ms = BUCKETS_AHEAD * settings.das.bucket_ms
        self._ahead_ms = settings.windows_ms[-1] + max(MIN_AHEAD_MS, grain_ms, *lateness)
        self._done_ms: dict[int, int] = {}

    def closed(self, shard: int, done_ms: int) -> None:
        """A shard has closed event time up to `done_ms`."""
        self._done_ms[shard] = done_ms

    def allows(self, watermark_ms: int) -> bool:
        """Whether a source that stands at `watermark_ms` shall read on."""
        slowest_ms = min(list(self._done_ms.values()), default=None)
        return slowest_ms is None or watermark_ms <= slowest_ms + self._ahead_ms
