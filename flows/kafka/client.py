"""How every client of the project reaches Kafka, and the topics that must be there."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ClusterMetadata,
    NewTopic,
)

from flows.kafka_settings import Kafka
from flows.settings import Settings, SettingsError, Topic

logger = logging.getLogger(__name__)

WAIT_S = 30.0
"""How long a broker may take to answer at the start."""
MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message of a topic that the project creates: a batch of thousands of rows."""
UNREACHABLE = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.REQUEST_TIMED_OUT,
)
"""Errors of a broker that is away."""
UNSETTLED = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)
"""Errors of a broker that has yet to hear of its own partitions, after a start or a new topic."""
SECRET = re.compile("password|secret|token|jaas|pem$")
"""Names of options whose values are not shown."""


class BrokerUnreachable(RuntimeError):
    """No broker answered; the message names the bootstrap address and the time waited."""

    def __init__(self, bootstrap: str, waited_s: float, cause: object) -> None:
        super().__init__(
            f"no Kafka broker answered at kafka.bootstrap = {bootstrap!r} within {waited_s:.0f} s: "
            f"{cause}; start it, or name another in kafka.bootstrap or EXFM_BOOTSTRAP"
        )


def client_config(kafka: Kafka) -> dict[str, Any]:
    """Options that every client shares; `kafka.client` may override all but the address.

    Raises:
        SettingsError: no bootstrap address is known.
    """
    if not kafka.bootstrap:
        raise SettingsError(
            "kafka.bootstrap = '': no broker is known; use `exfm up`, which starts one, "
            "or set EXFM_BOOTSTRAP"
        )
    return {
        "client.id": "exfm",
        "enable.metrics.push": False,
        "topic.metadata.refresh.interval.ms": 30_000,
        "reconnect.backoff.max.ms": 1_000,
        "socket.keepalive.enable": True,
        **kafka.client,
        "bootstrap.servers": kafka.bootstrap,
    }


@contextmanager
def refusing(config: dict[str, Any]) -> Iterator[None]:
    """Inside, a client is made of `config`; what librdkafka refuses names `kafka.client`.

    Raises:
        SettingsError: an option is unknown, or has a value that cannot be used.
    """
    try:
        yield
    except KafkaException as error:
        raise SettingsError(f"kafka.client: {refusal(config, error.args[0].str())}") from error
    except (AttributeError, TypeError, ValueError) as error:  # of an option that is no text
        raise SettingsError(f"kafka.client: {refusal(config, str(error))}") from error


def admin_client(config: dict[str, Any]) -> AdminClient:
    """A client that asks the brokers for what there is, and changes it.

    Raises:
        SettingsError: librdkafka refuses an option.
    """
    with refusing(config):
        return AdminClient(config, logger=logger)


def refusal(config: dict[str, Any], reason: str) -> str:
    """Options of `config` that a reason speaks of, with their values, and the reason."""
    options = [
        f"{option!r} = {'(not shown)' if SECRET.search(option) else repr(value)}"
        for option, value in config.items()
        if option in re.split(r"[^\w.-]+", reason)
    ]
    return f"{', '.join(options)}{': ' if options else ''}{' '.join(reason.split())}"


def producer_config(kafka: Kafka) -> dict[str, Any]:
    """Configuration of a producer.

    Raises:
        SettingsError: no bootstrap address is known.
    """
    return {"compression.type": kafka.compression, **client_config(kafka)}


def ensure_topics(
    settings: Settings, wait_s: float = WAIT_S, *, may_have_grown: Collection[str] = ()
) -> None:
    """Create missing topics, check those that exist, and wait until each partition has a leader.

    Several processes may do so at once.

    Args:
        settings: of the run.
        wait_s: for an answer, and for leaders.
        may_have_grown: keys of topics that may have more partitions than are configured.

    Raises:
        BrokerUnreachable: no broker answers within `wait_s`.
        SettingsError: a topic exists with another number of partitions.
        RuntimeError: a topic cannot be created, or gets no leader within `wait_s`.
    """
    wanted = [topic for _, topic in settings.topics]
    grown = {getattr(settings.topics, key).name for key in may_have_grown}
    ensure(settings.kafka, wanted, settings.topics.snapshots.name, wait_s, grown)


def ensure(
    kafka: Kafka,
    wanted: list[Topic],
    compacted: str = "",
    wait_s: float = WAIT_S,
    may_have_grown: Collection[str] = (),
) -> None:
    """As `ensure_topics`, for any topics by name; the one `compacted` keeps the newest of a key."""
    config = client_config(kafka)
    admin = admin_client(config)
    found = cluster(admin, config["bootstrap.servers"], wait_s)
    create(admin, [t for t in wanted if t.name not in found.topics], compacted, wait_s)
    deadline = time.monotonic() + wait_s
    while waiting := [t.name for t in wanted if not ready(t, found, t.name in may_have_grown)]:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"topics without a leader after {wait_s:.0f} s: {', '.join(waiting)}"
            )
        time.sleep(0.02)
        found = cluster(admin, config["bootstrap.servers"], wait_s)


def cluster(admin: AdminClient, bootstrap: str, wait_s: float) -> ClusterMetadata:
    """What the brokers say of themselves and their topics.

    Raises:
        BrokerUnreachable: none answers within `wait_s`.
    """
    started = time.monotonic()
    try:
        return admin.list_topics(timeout=wait_s)
    except KafkaException as error:
        if error.args[0].code() in UNREACHABLE:
            waited_s = time.monotonic() - started
            raise BrokerUnreachable(bootstrap, waited_s, error.args[0].str()) from error
        raise


def create(admin: AdminClient, missing: list[Topic], compacted: str, wait_s: float) -> None:
    """Create topics; one that another process has just created is fine."""
    if not missing:
        return
    new = [
        NewTopic(
            topic.name,
            topic.partitions,
            config={
                "max.message.bytes": str(MAX_MESSAGE_BYTES),
                "cleanup.policy": "compact" if topic.name == compacted else "delete",
            },
        )
        for topic in missing
    ]
    for name, future in admin.create_topics(new, operation_timeout=wait_s).items():
        try:
            future.result(timeout=wait_s)
            logger.info("created topic %s", name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise RuntimeError(
                    f"topic {name!r} cannot be created: {error.args[0].str()}"
                ) from error


def ready(topic: Topic, found: ClusterMetadata, may_have_grown: bool = False) -> bool:
    """Whether every partition of `topic` has a leader.

    Args:
        topic: as it is configured.
        found: what the brokers know.
        may_have_grown: it may have more partitions.

    Raises:
        SettingsError: the topic has another number of partitions than configured.
    """
    seen = found.topics.get(topic.name)
    if seen is None or seen.error is not None or not seen.partitions:
        return False
    has_grown = len(seen.partitions) > topic.partitions
    if len(seen.partitions) != topic.partitions and not (has_grown and may_have_grown):
        raise SettingsError(
            f"topic {topic.name!r} has {len(seen.partitions)} partitions, configured are "
            f"{topic.partitions}: set its `partitions`, or name another topic"
        )
    return all(partition.leader >= 0 for partition in seen.partitions.values())
