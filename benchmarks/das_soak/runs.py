"""Whole runs of the join over one log, and what their examples must be."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from benchmarks.das_soak.join_process import JoinProcesses
from benchmarks.examples import accepted_examples, messages, table_digest
from flows.kafka.client import ensure_topics
from flows.report.checks import Check
from flows.run_folder import RunFolder
from flows.settings import Settings

DRAIN_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A way to run the join that must change nothing."""

    name: str
    processes: int
    max_batch: int
    recovery_every_s: float


VARIANTS = (
    Variant(name="one process, large batches", processes=1, max_batch=8192, recovery_every_s=5),
    Variant(name="one process, tiny batches", processes=1, max_batch=61, recovery_every_s=1),
    Variant(name="two processes", processes=2, max_batch=1000, recovery_every_s=0.5),
)


def variants(
    settings: Settings,
    folder: RunFolder,
    expected: pa.Table,
    chosen: Sequence[Variant] = VARIANTS,
) -> Iterator[Check]:
    """Read the whole log in several ways, each into topics of its own."""
    for number, variant in enumerate(chosen):
        own = elsewhere(settings, variant)
        with JoinProcesses(
            own, RunFolder(folder.root / f"variant-{number}"), variant.processes
        ) as processes:
            processes.wait_for_the_end(DRAIN_S)
        yield same_examples(f"examples of {variant.name}, no kills", own, expected)


def elsewhere(settings: Settings, variant: Variant) -> Settings:
    """The same inputs, read in another way, with outputs of their own, which exist."""
    raw = settings.model_dump()
    for topic in ("examples", "dead_letters"):
        raw["topics"][topic]["name"] = f"{topic}-{uuid.uuid4().hex[:8]}"
    raw["das"] |= {
        "max_batch": variant.max_batch,
        "recovery_every_s": variant.recovery_every_s,
    }
    found = Settings.model_validate(raw)
    ensure_topics(found)
    return found


def same_examples(name: str, settings: Settings, expected: pa.Table) -> Check:
    """Rows, order and bytes are those of brute force."""
    rule = f"{len(expected):,}, digest {table_digest(expected)[:12]}, as brute force over the log"
    try:
        found = accepted_examples(settings)
    except ValueError as error:
        return Check(name=name, value=str(error), rule=rule, passed=False)
    repeats = f", {found.repeats:,} written again" if found.repeats else ""
    return Check(
        name=name,
        value=f"{len(found.table):,}, digest {found.digest[:12]}{repeats}",
        rule=rule,
        passed=found.digest == table_digest(expected),
    )


def same_dead_letters(settings: Settings, expected: set[tuple[str, int, int, bytes]]) -> Check:
    """Each broken or late message is there, byte for byte, and no other."""
    found, reasons = set(), Counter[str]()
    for message in messages(settings, settings.topics.dead_letters):
        headers: dict[str, bytes] = dict(message.headers() or [])  # type: ignore[arg-type]
        topic = headers["topic"].decode()
        letter = (topic, int(headers["partition"]), int(headers["offset"]), message.value() or b"")
        if letter not in found:
            reasons[headers["reason"].decode()] += 1
        found.add(letter)
    return Check(
        name="broken and late messages in dead_letters, byte for byte",
        value=f"{len(found & expected):,}: {', '.join(f'{n} {r}' for r, n in reasons.items())}",
        rule=f"{len(expected):,}, and no other",
        passed=found == expected,
    )
