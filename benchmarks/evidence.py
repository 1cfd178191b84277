"""What a finished run leaves to be compared: examples, weights, dead letters, counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from flows.consumer import PartitionConsumer
from flows.kafka_client import client_config
from flows.launch import Launched
from flows.records import decode, example_schema
from flows.run_folder import RunFolder
from flows.settings import Settings, Topic
from flows.summary import Figures, summarise
from flows.trainer import checkpoint_path
from models import checkpoint

TRAINED = ("learner:", "shadow:")
"""Tensors of a checkpoint that learning changes; the others measure."""
DeadLetter = tuple[str, bytes]
"""Topic and bytes of a rejected event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Of one run."""

    examples: str
    """Digest of all examples in order of shard and running number."""
    weights: dict[str, str]
    """Digest of each model's weights, its shadow's, and their optimisers'."""
    num_examples: int
    unique_ids: dict[str, int]
    """Impressions with an example, by task."""
    repeated_ids: dict[str, int]
    """Examples beyond the first of their impression, by task."""
    dead_letters: Counter[DeadLetter]
    """Distinct ones by topic, partition and offset."""
    reasons: Counter[str]
    summary: Figures
    restarts: dict[str, int]


def gather(run: Launched) -> Evidence:
    """Read everything that a drained run has written; its broker must still run."""
    settings, states = run.settings, run.supervisor.states()
    examples = read_examples(settings)
    dead = distinct_dead_letters(settings)
    run.scraper.scrape()
    counts = [(task.name, *id_counts(examples, task.name)) for task in settings.tasks]
    return Evidence(
        examples=table_digest(examples),
        weights={model: weights_digest(run.folder, model) for model in models(settings)},
        num_examples=len(examples),
        unique_ids={name: unique for name, unique, _ in counts},
        repeated_ids={name: repeated for name, _, repeated in counts},
        dead_letters=Counter((topic, value) for topic, value, _ in dead),
        reasons=Counter(reason for _, _, reason in dead),
        summary=summarise(settings, run.folder, run.scraper.samples, states),
        restarts={name: restarts for name, (_, restarts) in states.items()},
    )


def models(settings: Settings) -> list[str]:
    """Names of all trained models."""
    return ["fm", *(student.name for student in settings.students)]


def messages(settings: Settings, topic: Topic) -> Iterator[Message]:
    """Everything that a topic holds, partition by partition."""
    for partition in range(topic.partitions):
        consumer = PartitionConsumer(client_config(settings.kafka), topic.name, partition, None)
        while not consumer.at_end():
            yield from consumer.poll(1024)
        consumer.close()


def read_examples(settings: Settings) -> pa.Table:
    """Accepted examples by shard and running number; what a restart wrote again is dropped.

    Raises:
        ValueError: a running number is missing.
    """
    schema = example_schema(settings)
    tables = [schema.empty_table()]
    for message in messages(settings, settings.topics.examples):
        if message.value():
            table, _ = decode(message.value() or b"")
            tables.append(table.cast(schema))
    rows = pa.concat_tables(tables).combine_chunks()
    shard, number = rows["shard"].to_numpy(), rows["number"].to_numpy()
    order = np.lexsort((number, shard))
    pairs = np.stack([shard[order], number[order]], axis=1)
    first = np.ones(len(order), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs = pairs[first]
    for one in np.unique(pairs[:, 0]):
        numbers = pairs[pairs[:, 0] == one, 1]
        if not np.array_equal(numbers, np.arange(len(numbers))):
            raise ValueError(f"shard {one}: examples are missing among {len(numbers)}")
    return rows.take(pa.array(order[first]))


def id_counts(examples: pa.Table, task: str) -> tuple[int, int]:
    """Impressions with an example of a task, and examples beyond the first of each."""
    counts = examples.filter(examples[f"mask_{task}"])["impression_id"].value_counts()
    num = counts.field("counts").to_numpy(zero_copy_only=False)
    return len(num), int(num.sum()) - len(num)


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows, whatever its chunks."""
    digest = hashlib.sha256()
    for column in table.column_names:
        for start in range(0, len(table), 65_536):
            values = table[column].slice(start, 65_536).to_pylist()
            digest.update(repr((column, values)).encode())
    return digest.hexdigest()


def weights_digest(folder: RunFolder, model: str) -> str:
    """Digest of the weights and optimiser state of a model and its shadow, bit for bit."""
    tensors, _ = checkpoint.load(checkpoint_path(folder, model))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(TRAINED):
            array: Any = tensors[name].contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def distinct_dead_letters(settings: Settings) -> list[tuple[str, bytes, str]]:
    """Topic, bytes and reason of each dead letter, once for each place in its topic."""
    found = {}
    for message in messages(settings, settings.topics.dead_letters):
        headers: dict[str, bytes] = dict(message.headers() or [])  # type: ignore[arg-type]
        place = tuple(headers.get(name) for name in ("topic", "partition", "offset", "index"))
        topic, reason = headers["topic"].decode(), headers["reason"].decode()
        found[place] = (topic, message.value() or b"", reason)
    return list(found.values())
