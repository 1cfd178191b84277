"""What a finished run leaves to be compared: examples, weights, dead letters, counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from benchmarks.examples import accepted_examples, messages, table_digest
from flows.learning.trainer import checkpoint_path
from flows.report.summary import Figures, summarise
from flows.run.launch import Launched
from flows.run_folder import RunFolder
from flows.settings import Settings
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
    examples = accepted_examples(settings).table
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


def id_counts(examples: pa.Table, task: str) -> tuple[int, int]:
    """Impressions with an example of a task, and examples beyond the first of each."""
    counts = examples.filter(examples[f"mask_{task}"])["impression_id"].value_counts()
    num = counts.field("counts").to_numpy(zero_copy_only=False)
    return len(num), int(num.sum()) - len(num)


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
