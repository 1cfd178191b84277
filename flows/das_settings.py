"""The windowed join: the section `[das]` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.durations import Seconds, at_least
from models.schema import Value

MAX_TRANSACTIONAL_S = 300.0
"""A third of Kafka's default `transaction.max.timeout.ms`."""


class Das(Value):
    """The windowed join."""

    shards: Annotated[int, Field(ge=1, le=4096)] = 4
    bucket_s: Seconds = 1.0
    repeat_horizon_s: Seconds = 3600.0
    """An impression whose id was admitted less than this before is a repeat."""
    correction_horizon_s: Seconds = 3600.0
    """How long behind the end of a task's wait a label may correct it. Impressions, predictions and
    labels are kept that much longer, if a task has late_labels = "correct"."""
    idle_s: Seconds = 5.0
    """Live: a partition read to its end and silent for this long is left out of the watermark."""
    teacher_grace_s: Seconds = 10.0
    """Live: examples go out without a prediction once the teacher has been silent this long."""
    shard_grace_s: Seconds = 30.0
    """Live: trainers go on without a shard that has lagged the first one by this long."""
    recovery_every_s: Annotated[float, at_least(0.05)] = 5.0
    """Interval of recovery snapshots (Bytewax epochs). Each input must be asked within each, and is
    asked every 20 ms at least."""
    sink: Literal["idempotent", "transactional"] = "idempotent"
    """transactional: readers see examples at each recovery snapshot, those of a lost one never."""
    max_batch: Annotated[int, Field(ge=1, le=100_000)] = 16_384
    """Messages read at a time from one partition."""

    @model_validator(mode="after")
    def _transactions_may_last(self) -> Das:
        if self.sink == "transactional" and self.recovery_every_s > MAX_TRANSACTIONAL_S:
            raise ValueError(
                f"recovery_every_s = {self.recovery_every_s:g} must be at most "
                f"{MAX_TRANSACTIONAL_S:g} where sink = 'transactional': a transaction may be open "
                "for three times as long, and brokers allow 15 minutes"
            )
        return self

    @property
    def bucket_ms(self) -> int:
        """`bucket_s` in milliseconds."""
        return round(self.bucket_s * 1000)

    @property
    def repeat_horizon_ms(self) -> int:
        """`repeat_horizon_s` in milliseconds."""
        return round(self.repeat_horizon_s * 1000)

    @property
    def correction_horizon_ms(self) -> int:
        """`correction_horizon_s` in milliseconds."""
        return round(self.correction_horizon_s * 1000)
