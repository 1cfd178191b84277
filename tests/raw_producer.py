"""Writes what confluent-kafka's producer cannot: a header whose name is no UTF-8."""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka

TOPIC, PARTITION, VALUE, MSGFLAGS, HEADER, END = 1, 3, 4, 7, 9, 0
"""Of `rd_kafka_vtype_t`."""
PRODUCER, COPY, TIMEOUT_MS = 0, 2, 10_000


def produce(bootstrap: str, topic: str, partition: int, value: bytes | None, header: bytes) -> None:
    """Write one message with one header of that name, through librdkafka itself."""
    (path,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*")
    kafka = ctypes.CDLL(str(path))
    kafka.rd_kafka_conf_new.restype = kafka.rd_kafka_new.restype = ctypes.c_void_p
    said = ctypes.create_string_buffer(512)
    config = ctypes.c_void_p(kafka.rd_kafka_conf_new())
    kafka.rd_kafka_conf_set(config, b"bootstrap.servers", bootstrap.encode(), said, 512)
    client = ctypes.c_void_p(kafka.rd_kafka_new(PRODUCER, config, said, ctypes.c_size_t(512)))
    assert client, said.value
    failed = kafka.rd_kafka_producev(
        client,
        *(TOPIC, topic.encode(), PARTITION, ctypes.c_int32(partition), MSGFLAGS, COPY),
        *(VALUE, value, ctypes.c_size_t(len(value or b""))),
        *(HEADER, header, b"1", ctypes.c_ssize_t(1)),
        END,
    )
    assert not failed
    assert not kafka.rd_kafka_flush(client, TIMEOUT_MS)
    kafka.rd_kafka_destroy(client)
