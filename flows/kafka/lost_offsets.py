"""What becomes of a reader whose next message its partition does not hold.

Retention may be faster than a reader, or than one that was down: then the oldest message that is
there stands behind the next one to read. Anything else means that the topic is not the one that
was read before, and is never passed over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flows.settings import Settings
from monitoring.metrics import SOURCE_LOST

logger = logging.getLogger(__name__)

STOPS = (
    "kafka.lost_offsets = 'stop' ends here; with 'skip' the reader goes on at the oldest that is "
    "there, and counts those that are lost (exfm_source_lost_total)"
)
INSISTS = (
    "they cannot be skipped where event time decides alone (teacher.version = 'as_of', and each "
    "backfill), as the same log must give the same examples"
)
ANEW = "a new run (with another topics.examples) or a new backfill begins with what is there"


class OffsetLost(RuntimeError):
    """A partition does not hold the offset that is to be read; the message names both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LostOffsets:
    """What to do about messages that were deleted before they were read."""

    skips: bool = False
    """Whether to go on at the oldest that is there."""
    choice: str = "retention must keep what was not read yet"
    """Where not: who says so, and what else may be chosen; for the error."""
    anew: str = ANEW
    """How to begin with what is there, giving up what was read; for the error."""

    @classmethod
    def of_inputs(cls, settings: Settings) -> LostOffsets:
        """Of impressions, labels and predictions, as configured."""
        if settings.as_of:
            return cls(choice=INSISTS)
        return cls(skips=settings.kafka.lost_offsets == "skip", choice=STOPS)

    def resume(self, topic: str, partition: int, offset: int, low: int, high: int) -> int:
        """The offset to go on at: the oldest that is there, what was before it is counted as lost.

        Args:
            topic: what is read.
            partition: its number.
            offset: of the next message to read, which is not there.
            low: offset of the oldest message.
            high: offset behind the newest message.

        Raises:
            OffsetLost: nothing may be skipped, or not the oldest messages are missing.
        """
        where = f"topic {topic!r} partition {partition}"
        there = f"the partition holds offsets {low} to {high}"
        if offset >= low:
            raise OffsetLost(
                f"{where}: offset {offset} is lost: {there}: the topic was deleted and created "
                "anew, or has lost its end, so that this offset may be another message than the "
                f"one that is next; that is never skipped: {self.anew}"
            )
        lost = low - offset
        if not self.skips:
            raise OffsetLost(
                f"{where}: offset {offset} is lost: {there}, {lost} messages were deleted before "
                f"they were read; {self.choice}; {self.anew}"
            )
        logger.warning(
            "%s: offset %d is lost: %s; going on at offset %d without %d messages, as "
            "kafka.lost_offsets = 'skip' says",
            where,
            offset,
            there,
            low,
            lost,
        )
        SOURCE_LOST.labels(topic).inc(lost)
        return low
