"""What several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from flows.broker import EmbeddedKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a broker: EXFM_TEST_BOOTSTRAP, or an Apache Kafka for this session."""
    given = os.environ.get("EXFM_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap
