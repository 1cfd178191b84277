"""The figures of a run, as in `summary.json`; docs/summary.md describes the keys."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.figures import (
    by_labels,
    freshness_series,
    load_report,
    of,
    quality_documents,
)
from flows.report.scrape import Sample, rate
from flows.run_folder import RunFolder
from flows.settings import Settings

Figures = dict[str, Any]
TEACHER = "fm"


def summarise(
    settings: Settings,
    folder: RunFolder,
    samples: Sequence[Sample],
    states: Mapping[str, tuple[str, int]],
) -> Figures:
    """Everything that `summary.json` holds.

    Args:
        settings: of the run.
        folder: of the run.
        samples: its metrics over time.
        states: state and restarts of each process.
    """
    last = samples[-1] if samples else Sample(at_s=0.0, values={})
    return {
        "run": folder.root.name,
        "started_ms": round(samples[0].at_s * 1000) if samples else None,
        "wall_s": last.at_s - samples[0].at_s if samples else 0.0,
        "stream": stream(of(last, "das")),
        "teacher": teacher(last),
        "models": models(folder),
        "training": training(last, samples),
        "serving": serving(settings, folder, samples),
        "snapshots": {
            "published": last.by("model", "exfm_snapshot_published_total"),
            "refused": by_labels(last, "exfm_snapshot_refused_total", "model", "reason"),
        },
        "processes": {
            name: {"state": state, "restarts": restarts}
            for name, (state, restarts) in states.items()
        },
    }


def stream(das: Sample) -> Figures:
    """Counts of the join."""
    read = das.by("topic", "exfm_source_events_total")
    return {
        "events_read": read,
        "examples": das.by("domain", "exfm_das_windows_closed_total"),
        "examples_with_prediction": das.by("domain", "exfm_das_covered_total"),
        "positives": das.by("task", "exfm_das_positives_total"),
        "rejected": by_labels(das, "exfm_source_rejected_total", "topic", "reason"),
        "dead_letters": by_labels(das, "exfm_dead_letters_total", "topic", "reason"),
        "repeats": das.by("kind", "exfm_das_repeats_total"),
        "unmatched": das.by("kind", "exfm_das_unmatched_total"),
        "labels_correcting": das.total("exfm_das_labels_correcting_total"),
        "early": das.by("task", "exfm_das_early_total"),
        "corrections": das.by("task", "exfm_das_corrections_total"),
        "known_negatives": das.by("task", "exfm_das_known_negatives_total"),
        "left_out": das.by("way", "exfm_das_left_out_total"),
        "closed_bucket": das.by("kind", "exfm_das_closed_bucket_total"),
    }


def teacher(last: Sample) -> Figures:
    """Counts of FM inference."""
    scored = last.by("version_known", "exfm_fm_scored_total")
    return {
        "scored": scored.get("true", 0.0),
        "before_first_snapshot": scored.get("false", 0.0),
        "swaps": last.total("exfm_fm_swaps_total"),
    }


def models(folder: RunFolder) -> Figures:
    """Quality over the last two thirds of the stream, by model and task."""
    return {name: document["totals"] for name, document in quality_documents(folder).items()}


def training(last: Sample, samples: Sequence[Sample]) -> Figures:
    """Examples applied, and the best rate over ten seconds."""
    name = "exfm_train_examples_total"
    series = list(samples)
    return {
        model: {
            "examples": examples,
            "peak_per_s": max(
                (
                    rate(series[max(0, i - 20) : i + 1], name, 10.0, model=model)
                    for i in range(1, len(series))
                ),
                default=0.0,
            ),
        }
        for model, examples in last.by("model", name).items()
    }


def serving(settings: Settings, folder: RunFolder, samples: Sequence[Sample]) -> Figures:
    """What the load saw, and how old the models were that answered."""
    last = samples[-1] if samples else Sample(at_s=0.0, values={})
    load = load_report(folder)
    topic = settings.topics.impressions.name
    ages: dict[str, list[float]] = {}
    for moment in freshness_series(samples, topic):
        for model, age_s in moment.items():
            ages.setdefault(model, []).append(age_s)
    return {
        "load": {key: value for key, value in load.items() if key not in ("series", "versions")},
        "swaps": last.by("model", "exfm_serve_swaps_total"),
        "versions_refused": last.by("model", "exfm_serve_refused_versions_total"),
        "freshness_s": {
            model: {"median": statistics.median(values), "largest": max(values)}
            for model, values in ages.items()
        },
    }
