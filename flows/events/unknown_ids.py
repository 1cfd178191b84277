"""Ids of schemas that the registry does not know: when each is asked for again, and how often.

An event is written after its schema is registered, but the registry that answers may be a follower
which has yet to hear of it. So an id is asked for several times before it counts as unknown. It may
be registered later, by whoever else gives out the same numbers, so it does not count for ever.
Messages of any bytes name any ids: most of the time must be left for other events.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0)
"""Before an id is asked for again; a follower lags by milliseconds, or it is not well."""
REST_S = 30.0
"""After pauses that were in vain there are none for so long."""
UNKNOWN_S = 10.0
"""For so long an id counts as unknown."""
MOST_IDS = 4096
"""Remembered; then all are forgotten."""
MOST_TOLD = 100
"""Of these the log tells so many: it is not to be filled by damaged messages."""


class UnknownIds:
    """Those of one registry."""

    def __init__(
        self,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """None yet.

        Args:
            name: of the registry, for the log.
            clock: seconds since some moment.
            pause: waits for some seconds.
        """
        self._name = name
        self._clock = clock
        self._pause = pause
        self._until_s: dict[int, float] = {}
        self._rest_until_s = clock()

    def __contains__(self, schema_id: int) -> bool:
        """Whether an id counts as unknown now."""
        return schema_id in self._until_s and self._clock() < self._until_s[schema_id]

    def tries(self, schema_id: int) -> Iterator[int]:
        """Numbers of the times that an id is to be asked for, with pauses between them."""
        yield 0
        if schema_id in self._until_s or self._clock() < self._rest_until_s:
            return
        for number, pause_s in enumerate(PAUSES_S, start=1):
            self._pause(pause_s)
            yield number
        self._rest_until_s = self._clock() + REST_S

    def add(self, schema_id: int) -> None:
        """Let an id count as unknown for a while; the log tells it once."""
        is_new = schema_id not in self._until_s
        if is_new and len(self._until_s) >= MOST_IDS:
            self._until_s.clear()
        if is_new and len(self._until_s) < MOST_TOLD:
            logger.warning(
                "schema registry %s does not know schema %d: its events are rejected, and it is "
                "asked again after %.0f s",
                *(self._name, schema_id, UNKNOWN_S),
            )
        self._until_s[schema_id] = self._clock() + UNKNOWN_S
