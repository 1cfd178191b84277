"""What several tests share."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.kafka.broker import EmbeddedKafka
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.producer import BatchProducer
from flows.kafka_settings import Kafka
from flows.settings import Settings
from onnx_export.store import SnapshotStore


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a broker: EXFM_TEST_BOOTSTRAP, or an Apache Kafka for this session."""
    given = os.environ.get("EXFM_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported templates, kept for the session: an export takes seconds."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def store(tmp_path: Path, exported: Path) -> Iterator[SnapshotStore]:
    """An empty snapshot store that knows the session's templates."""
    snapshots = SnapshotStore(tmp_path / "store", durable=False)
    shutil.copytree(exported, snapshots.templates)
    yield snapshots
    shutil.copytree(snapshots.templates, exported, dirs_exist_ok=True)


@pytest.fixture
def tiny_settings() -> Settings:
    """Two domains, two tasks of different windows, a feature of each kind; no broker."""
    return Settings.model_validate(
        {
            "domains": ["feed", "search"],
            "features": [
                {"name": "user_id", "kind": "categorical", "dtype": "int"},
                {"name": "device", "kind": "categorical"},
                {"name": "price", "kind": "numeric", "transform": "log1p"},
                {"name": "recent_ads", "kind": "sequence", "max_length": 3},
            ],
            "tasks": [
                {"name": "click", "window_s": 10, "oracle": "p_click"},
                {"name": "conversion", "window_s": 60},
            ],
            "topics": {
                "impressions": {"name": "impressions", "lateness_s": 5},
                "labels": {"name": "labels", "lateness_s": 5},
            },
            "das": {"shards": 2, "bucket_s": 1, "recovery_every_s": 1},
            "teacher": {
                "version": "as_of",
                "lag_s": 5,
                "snapshot_every_s": 10,
                "warmup_examples": 64,
                "network": {"dim": 4, "cross_layers": 1, "hidden": [8], "table_rows": 256},
                "learning": {"batch": 32},
            },
            "students": [
                {
                    "name": "feed_late",
                    "domains": ["feed"],
                    "tasks": ["click", "conversion"],
                    "snapshot_every_s": 10,
                    "warmup_examples": 32,
                    "network": {"dim": 4, "cross_layers": 1, "hidden": [8], "table_rows": 64},
                    "learning": {"batch": 16},
                },
                {
                    "name": "search_early",
                    "domains": ["search"],
                    "stage": "early",
                    "tasks": ["click"],
                    "features": ["user_id", "device"],
                    "snapshot_every_s": 10,
                    "warmup_examples": 32,
                    "network": {"dim": 4, "cross_layers": 1, "hidden": [8], "table_rows": 64},
                    "learning": {"batch": 16},
                    "distillation": {"mode": "kd_sa"},
                },
            ],
        }
    )


@pytest.fixture
def kafka_settings(kafka: str, tiny_settings: Settings) -> Settings:
    """`tiny_settings` on the broker of the session, with topics of its own that exist."""
    run = uuid.uuid4().hex[:8]
    topics = {
        key: {**topic.model_dump(), "name": f"{topic.name}-{run}"}
        for key, topic in tiny_settings.topics
    }
    raw = {**tiny_settings.model_dump(), "kafka": {"bootstrap": kafka}, "topics": topics}
    settings = Settings.model_validate(raw)
    ensure_topics(settings)
    return settings


@pytest.fixture
def producer(kafka: str) -> BatchProducer:
    """A producer on the broker of the session."""
    return BatchProducer(client_config(Kafka(bootstrap=kafka)))
