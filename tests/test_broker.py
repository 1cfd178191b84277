"""One broker of this module's own: the session's must not be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flows.kafka.broker import BrokerError, EmbeddedKafka, free_port, is_free

pytestmark = pytest.mark.kafka

OWNER = """
import sys, threading
from pathlib import Path
from flows.kafka.broker import EmbeddedKafka
broker = EmbeddedKafka(Path(sys.argv[1]))
broker.start()
print(broker.pid, flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own_kafka")


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(folder) as running:
        yield running


def create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for created in admin.create_topics([NewTopic(topic, 1, 1)]).values():
        created.result(timeout=30)


def send(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(60) == 0


def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    messages: list[Message] = consumer.consume(count, timeout=60)
    consumer.close()
    return [message.value() for message in messages]


def test_kill_loses_nothing_and_restart_keeps_the_port(broker: EmbeddedKafka) -> None:
    values = [str(number).encode() for number in range(1000)]
    address, pid = broker.bootstrap, broker.pid
    create_topic(address, "kept")
    send(address, "kept", values)
    broker.kill()
    assert not broker.running
    broker.start()
    assert broker.bootstrap == address
    assert broker.pid != pid
    send(address, "kept", [b"after"])
    assert read(address, "kept", 1001) == [*values, b"after"]


def test_stop_is_clean_and_the_folder_opens_again(broker: EmbeddedKafka, folder: Path) -> None:
    create_topic(broker.bootstrap, "reopened")
    send(broker.bootstrap, "reopened", [b"value"])
    process, port = psutil.Process(broker.pid), int(broker.bootstrap.rpartition(":")[2])
    broker.stop()
    assert not process.is_running()
    assert is_free(port)
    with EmbeddedKafka(folder) as again:
        assert again.bootstrap == broker.bootstrap
        assert read(again.bootstrap, "reopened", 1) == [b"value"]
    broker.start()


def test_second_start_is_refused(broker: EmbeddedKafka, folder: Path) -> None:
    with pytest.raises(RuntimeError, match="already runs"):
        broker.start()
    with pytest.raises(BrokerError, match="is used by another"):
        EmbeddedKafka(folder).start()


def test_broker_that_ends_at_its_start_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=not the metadata\n")
    broken = EmbeddedKafka(tmp_path)
    with pytest.raises(BrokerError, match=r"Kafka ended with 1 .*kafka\.log"):
        broken.start()
    assert not broken.running
    assert broken.log.stat().st_size > 0


def test_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(BrokerError, match=f"port {port} "):
            EmbeddedKafka(tmp_path, port).start()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's PR_SET_PDEATHSIG")
def test_killed_owner_leaves_no_broker(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        assert "kafka.Kafka" in child.cmdline()
        os.kill(owner.pid, signal.SIGKILL)
    child.wait(30)
