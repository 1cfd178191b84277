"""Where the brokers are, and how they are read: the section `[kafka]` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from models.schema import Value

Client = dict[str, str | int | float | bool]
RESET = "auto.offset.reset"


class Kafka(Value):
    """Where the brokers are."""

    bootstrap: str = ""
    """Empty: the project starts an Apache Kafka of its own in the run's folder."""
    client: Client = Field(default_factory=dict)
    """Passed to librdkafka as it stands, e.g. `"security.protocol" = "SASL_SSL"`."""
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    """Of everything that the project writes, by the producer."""
    lost_offsets: Literal["stop", "skip"] = "stop"
    """Live, where impressions, labels or predictions were deleted before they were read. skip: go
    on at the oldest that is retained, and count what is lost."""

    @field_validator("client")
    @classmethod
    def _one_setting_chooses(cls, client: Client) -> Client:
        if RESET in client:
            raise ValueError(f"{RESET!r} has no effect: kafka.lost_offsets chooses, stop or skip")
        return client
