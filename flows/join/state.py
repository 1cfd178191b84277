"""Where DAS keeps its state, and what that state was made for.

state/das/recovery/        Bytewax: offsets, and the segments of each shard
state/das/shards/<shard>/  segments
state/das/format.json      what may not change while the state lives
state/das/transactional    there may be open transactions, see flows/join/past_transactions.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.join.label_rules import LabelRules
from flows.join.recovery import (
    WAY_OUT,
    RecoveryUnreadable,
    insist_on_snapshots,
    saved_shards,
)
from flows.records import example_schema, impression_schema, prediction_schema
from flows.run_folder import write_json
from flows.settings import EventTopic, Settings, SettingsError

GROWING = ("impressions", "labels")
"""Topics to which partitions may be added while a state lives."""

FORMAT_VERSION = 7
FORMAT = "format.json"


def recovery_folder(state: Path) -> Path:
    """Bytewax's recovery store."""
    return state / "recovery"


def shards_folder(state: Path) -> Path:
    """Segments, a folder a shard."""
    return state / "shards"


def is_made(state: Path) -> bool:
    """Whether the join was started there before."""
    return (state / FORMAT).exists()


def may_have_grown(state: Path) -> tuple[str, ...]:
    """Topics that a start takes with more partitions than are configured.

    A join that has begun reads on what it has read, and says what it leaves out, as it does when
    they grow while it runs: its end, of whatever cause, is no moment to ask for a configuration.
    """
    return GROWING if is_made(state) else ()


def claim(state: Path, settings: Settings) -> None:
    """Check that the state in a folder fits the configuration; note what a new one is made for.

    Partitions may be added to the topics of impressions and labels.

    Raises:
        SettingsError: it was made for another configuration.
        RecoveryUnreadable: a part of it is gone or damaged.
    """
    path, wanted = state / FORMAT, made_for(settings)
    recovery, shards = recovery_folder(state), shards_folder(state)
    has_segments = any(shards.rglob("*.arrow"))
    if has_segments and not recovery.exists():
        raise RecoveryUnreadable(f"{recovery} is gone, but {shards} holds segments; {WAY_OUT}")
    if not path.exists():
        if has_segments or saved_shards(recovery):
            raise RecoveryUnreadable(f"{path} is gone, but {recovery} is there; {WAY_OUT}")
        write_json(path, wanted)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        found = grown(before, wanted)
    except (AttributeError, TypeError, ValueError) as error:  # no JSON, or none of ours
        raise RecoveryUnreadable(f"{path} is damaged: {error}; {WAY_OUT}") from error
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        lines = [f"{key}: {found.get(key)!r} there, {wanted[key]!r} configured" for key in changed]
        raise SettingsError(
            f"{state}: the state was made for another configuration; take that one again, or "
            f"start a new run:\n" + "\n".join(lines)
        )
    insist_on_snapshots(recovery)
    if found != before:
        write_json(path, found)


def grown(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What a state was made for, with the partitions that are wanted where they are more."""
    topics = dict(found.get("topics", {}))
    for name in GROWING:
        if name in topics:
            (had, partitions), (has, more) = topics[name], wanted["topics"][name]
            topics[name] = [had, max(partitions, more) if had == has else partitions]
    return {**found, "topics": topics}


def made_for(settings: Settings) -> dict[str, Any]:
    """What decides which examples a log means, and where they stand."""
    topics = settings.topics
    return {
        "format_version": FORMAT_VERSION,
        "das.shards": settings.das.shards,
        "das.bucket_s": settings.das.bucket_s,
        "teacher.version": settings.teacher.version,
        **decided_by_the_log(settings),
        "tasks": [
            [t.name, t.window_ms, t.given, t.early, t.late_labels, t.repeated_labels]
            for t in settings.tasks
        ],
        "das.correction_horizon_s": horizon_s(settings),
        "topics": {
            name: [topic.name, topic.partitions]
            for name, topic in topics
            if name in ("impressions", "labels", "fm_predictions", "examples")
        },
        "columns": [
            [f"{f.name}: {f.type}" for f in schema]
            for schema in (
                impression_schema(settings),
                prediction_schema(settings),
                example_schema(settings),
            )
        ],
    }


def decided_by_the_log(settings: Settings) -> dict[str, Any]:
    """What may change in a live run only: there, what was written is what counts."""
    found = {"das.repeat_horizon_s": settings.das.repeat_horizon_s}
    for name in GROWING:
        topic: EventTopic = getattr(settings.topics, name)
        found[f"topics.{name}.lateness_s"] = topic.lateness_s
        found[f"topics.{name}.max_ahead_s"] = topic.max_ahead_s
    return found if settings.as_of else {}


def horizon_s(settings: Settings) -> float | None:
    """How far corrections look back; None: no task corrects late labels."""
    corrects = LabelRules.of(settings).table["corrects"].any()
    return settings.das.correction_horizon_s if corrects else None
