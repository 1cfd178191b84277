"""Where the brokers are: the section `[kafka]` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.schema import Value


class Kafka(Value):
    """Where the brokers are."""

    bootstrap: str = ""
    """Empty: the project starts an Apache Kafka of its own in the run's folder."""
    client: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Passed to librdkafka as it stands, e.g. `"security.protocol" = "SASL_SSL"`."""
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    """Of everything that the project writes, by the producer."""
