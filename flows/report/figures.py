"""What the metrics of a run say: the figures behind the live view, the summary and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.scrape import Sample
from flows.run_folder import RunFolder

FAR_S = 4_102_444_800.0
"""Watermarks beyond the year 2100 say that a log has ended."""
MAX_PACE = 2.0
"""A stream that runs faster than this is read as fast as it can be."""


def of(sample: Sample, process: str) -> Sample:
    """The part of a sample that one process wrote, or several that share its work."""
    values = {
        name: found
        for name, found in sample.values.items()
        if name == process
        or (name.startswith(f"{process}-") and name[len(process) + 1 :].isdigit())
    }
    return Sample(at_s=sample.at_s, values=values)


def event_now_s(sample: Sample, topic: str) -> float | None:
    """Newest event time that any process has read of a topic, as far as its watermark tells."""
    marks = [value for _, value in sample.each("exfm_source_watermark_seconds", topic=topic)]
    return max((mark for mark in marks if 0 < mark < FAR_S), default=None)


def freshness_s(sample: Sample, topic: str) -> dict[str, float]:
    """Age, in event time, of the newest example inside each model that serves."""
    now_s = event_now_s(sample, topic)
    if now_s is None:
        return {}
    newest = sample.by("model", "exfm_serve_newest_example_seconds")
    return {model: max(0.0, now_s - value) for model, value in newest.items() if value > 0}


def keeps_wall_time(samples: Sequence[Sample], topic: str) -> bool:
    """Whether event time passes about as wall time does.

    Where it does not, as in a replay at full speed, the age of an example says how far its readers
    read ahead, and nothing of how fresh a model is.
    """
    moments = [(sample.at_s, event_now_s(sample, topic)) for sample in samples]
    known = [(at_s, now_s) for at_s, now_s in moments if now_s is not None]
    if len(known) < 2:
        return False
    wall_s, event_s = (last - first for first, last in zip(known[0], known[-1], strict=True))
    return event_s <= MAX_PACE * wall_s


def freshness_series(samples: Sequence[Sample], topic: str) -> list[dict[str, float]]:
    """Freshness at each sample, as long as events come; empty where it means nothing."""
    if not keeps_wall_time(samples, topic):
        return [{}] * len(samples)
    times_s = [event_now_s(sample, topic) or 0.0 for sample in samples]
    num = times_s.index(max(times_s)) + 1
    return [freshness_s(sample, topic) for sample in samples[:num]] + [{}] * (len(samples) - num)


def percentile_s(
    name: str, share: float, earlier: Sample, later: Sample, **labels: str
) -> float | None:
    """A percentile of what a histogram saw between two samples, interpolated within its bucket.

    Returns:
        Seconds; None if it saw nothing, or nothing below its last bound.
    """
    bounds: dict[float, float] = {}
    for sign, sample in ((1, later), (-1, earlier)):
        for have, count in sample.each(f"{name}_bucket", **labels):
            bound = float(have["le"])
            bounds[bound] = bounds.get(bound, 0.0) + sign * count
    counts = sorted(bounds.items())
    wanted = share * counts[-1][1] if counts else 0.0
    below_s, below = 0.0, 0.0
    for bound_s, count in counts:
        if 0 < wanted <= count:
            found = below_s + (bound_s - below_s) * (wanted - below) / (count - below)
            return found if math.isfinite(found) else None
        below_s, below = bound_s, count
    return None


def lag(sample: Sample) -> dict[str, float]:
    """Messages that each topic's slowest reader has not read yet, over all partitions."""
    slowest: dict[str, float] = {}
    for process in sample.values:
        mine = Sample(at_s=sample.at_s, values={process: sample.values[process]})
        for topic, messages in mine.by("topic", "exfm_source_lag_messages").items():
            slowest[topic] = max(slowest.get(topic, 0.0), messages)
    return slowest


def by_labels(sample: Sample, name: str, *labels: str) -> dict[str, float]:
    """Sums by several labels, joined by a slash."""
    sums: dict[str, float] = {}
    for have, value in sample.each(name):
        key = "/".join(have[label] for label in labels)
        sums[key] = sums.get(key, 0.0) + value
    return sums


def quality_documents(folder: RunFolder) -> dict[str, Mapping[str, Any]]:
    """Quality of each model as its trainer last wrote it, by model."""
    found = {}
    for path in sorted(folder.quality.glob("*.json")):
        found[path.stem] = json.loads(path.read_bytes())
    return found


def load_report(folder: RunFolder) -> Mapping[str, Any]:
    """What the load driver last wrote; empty without one."""
    path = folder.root / "load.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
