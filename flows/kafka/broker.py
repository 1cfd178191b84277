"""A real Apache Kafka that the project starts by itself: one node, KRaft, on 127.0.0.1 only."""

from __future__ import annotations

import base64
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from flows.kafka.jars import class_path
from flows.kafka.java import java_program
from flows.tethered import TetheredProcess
from models.durable import write_atomically

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below the ports that systems hand to outgoing connections: a client that keeps trying to reach
a stopped broker on such a port may connect to itself and so take the port from the next start."""

JVM_OPTIONS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers={host}:{controller_port}
log.dirs={data}
log.retention.ms=-1
log.retention.bytes=-1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
"""
"""Nothing is deleted by age: a replayed log may carry timestamps of years ago."""


class BrokerError(RuntimeError):
    """The embedded Kafka did not start; the message names its log."""


class EmbeddedKafka:
    """One Kafka node with its data, log and ports in one folder.

    It ends with its owner, even if that is killed -9, and leaves the data: starting again, by this
    object or by another one on the same folder, serves the same data on the same port.
    """

    def __init__(
        self, folder: Path, port: int | None = None, *, start_timeout_s: float = 120.0
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: made if missing.
            port: None: the folder's port, or at the first start a free one.
            start_timeout_s: deadline for the first answer; recovery after a kill takes 10 s.
        """
        self._folder = folder.resolve()
        self._port = port
        self._start_timeout_s = start_timeout_s
        self._process: TetheredProcess | None = None

    @property
    def log(self) -> Path:
        """What Kafka says, warnings and worse."""
        return self._folder / "kafka.log"

    @property
    def bootstrap(self) -> str:
        """`host:port` for `bootstrap.servers`; known from the first start on."""
        if self._port is None:
            raise RuntimeError(f"Kafka in {self._folder} has no port before its first start")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        if self._process is None:
            raise RuntimeError(f"Kafka in {self._folder} does not run, so it has no pid")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, and was not stopped, killed, or ended by itself."""
        return self._process is not None and self._process.exit_code is None

    def start(self) -> None:
        """Start, and wait until it answers.

        Raises:
            BrokerError: it ended, or did not answer in time.
            JarError: its jars cannot be fetched.
        """
        if self.running:
            raise RuntimeError(f"Kafka in {self._folder} already runs as process {self.pid}")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._configure()
        java = self._java_command()
        if not (self._data / "meta.properties").exists():
            self._format(java)
        self._process = TetheredProcess([*java, "kafka.Kafka", str(self._properties)], log=self.log)
        try:
            self._wait_until_it_answers(time.monotonic() + self._start_timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stop cleanly, after `timeout_s` by force; nothing happens if it does not run."""
        if self._process is not None:
            self._process.send(signal.SIGTERM)
            self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End it as a crash would (kill -9); the data stay as they are."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> EmbeddedKafka:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _configure(self) -> None:
        """Write the properties with the folder's ports, chosen at the first start."""
        known_port, known_controller_port = self._known_ports()
        self._port = self._port or known_port or free_port()
        controller_port = known_controller_port or free_port(besides=self._port)
        text = PROPERTIES.format(
            host=HOST, port=self._port, controller_port=controller_port, data=self._data
        )
        write_atomically(self._properties, text.encode())
        for port in (self._port, controller_port):
            if not is_free(port):
                raise BrokerError(f"port {port} of Kafka in {self._folder} is used by another")

    def _known_ports(self) -> tuple[int | None, int | None]:
        if not self._properties.exists():
            return None, None
        lines = self._properties.read_text().splitlines()
        listeners = next(line for line in lines if line.startswith("listeners="))
        port, controller_port = (int(part.rpartition(":")[2]) for part in listeners.split(","))
        return port, controller_port

    def _java_command(self) -> list[str]:
        """Everything up to the main class."""
        scratch = self._folder / "tmp"
        scratch.mkdir(exist_ok=True)
        jars = ":".join(str(path) for path in class_path())
        return [str(java_program()), *JVM_OPTIONS, f"-Djava.io.tmpdir={scratch}", "-cp", jars]

    def _format(self, java: list[str]) -> None:
        """Prepare an empty data folder; what an interrupted attempt left is removed."""
        shutil.rmtree(self._data, ignore_errors=True)
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        arguments = ["format", "--standalone", "-t", cluster, "-c", str(self._properties)]
        with self.log.open("ab") as log:
            done = subprocess.run(
                [*java, "kafka.tools.StorageTool", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise BrokerError(
                f"formatting Kafka's storage failed with {done.returncode}: {self.log}"
            )

    def _wait_until_it_answers(self, deadline_s: float) -> None:
        process = self._process
        assert process is not None
        client = None
        while True:
            if process.wait(0.05):
                raise BrokerError(f"Kafka ended with {process.exit_code} at its start: {self.log}")
            if time.monotonic() > deadline_s:
                raise BrokerError(
                    f"Kafka on {self.bootstrap} did not answer within {self._start_timeout_s} s: "
                    f"{self.log}"
                )
            if client is None and not is_free(int(self.bootstrap.rpartition(":")[2])):
                client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
            if client is not None and _answers(client):
                return


def _answers(client: AdminClient) -> bool:
    try:
        return bool(client.list_topics(timeout=1.0).brokers)
    except KafkaException:
        return False


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(besides: int | None = None) -> int:
    """A random free port of `PORTS`."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if port != besides and is_free(port):
            return port
    raise BrokerError(f"no port of {HOST} is free between {PORTS.start} and {PORTS.stop - 1}")
