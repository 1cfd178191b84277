"""Quality as a document, `quality/<model>.json`, and as live metrics.

The document has one row an interval of event time and task, with counts and sums of log loss, so
that a reader may add intervals up, and `totals` over the last two thirds of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flows.learning.quality import INDEX, SUMS, Array, Quality
from flows.learning.ranking import SCORES, Block
from models.metrics import ne_gain, normalised_entropy, transfer_ratio
from monitoring.metrics import (
    TRAIN_AUC,
    TRAIN_CALIBRATION,
    TRAIN_COVERAGE,
    TRAIN_FM_NE,
    TRAIN_GAIN,
    TRAIN_NE,
    TRAIN_SHADOW_NE,
    TRAIN_TRANSFER,
)

Figures = dict[str, float | None]
NEWEST_INTERVALS = 2
"""A teacher that falls silent shows in the coverage this soon."""


def document(
    model: str, domains: Sequence[str], quality: Quality, *, has_users: bool
) -> dict[str, Any]:
    """The whole document, in plain data."""
    intervals = [
        {"interval_start_ms": start, "task": task, **interval(sums[t], quality.has_shadow)}
        for start, sums in quality.curve.items()
        for t, task in enumerate(quality.tasks)
    ]
    return {
        "model": model,
        "domains": list(domains),
        "tasks": list(quality.tasks),
        "interval_ms": quality.curve.width_ms,
        "intervals": intervals,
        "totals": totals(quality, has_users=has_users),
    }


def interval(sums_K: Array, has_shadow: bool) -> Figures:
    """Counts and sums of one interval and task; what was not measured is None."""
    figures: Figures = dict(zip(SUMS, sums_K.tolist(), strict=True))
    figures["fm"] = figures["fm_covered"]
    if not has_shadow:
        figures |= {name: None for name in SUMS if "shadow" in name}
    return figures


def totals(quality: Quality, *, has_users: bool) -> dict[str, Any]:
    """Figures of each task over the last two thirds of event time."""
    start_ms = quality.curve.last_two_thirds_ms()
    sums, block = quality.curve.since(start_ms), quality.ranking.last_two_thirds()
    return {
        task: {
            "since_ms": start_ms,
            **compared(sums[t], quality.has_shadow),
            "auc": ranked(block, t, "auc", quality.has_shadow),
            "gauc": ranked(block, t, "gauc", quality.has_shadow) if has_users else None,
            "coverage_after_first": coverage_after_first(quality, t),
        }
        for t, task in enumerate(quality.tasks)
    }


def compared(sums_K: Array, has_shadow: bool) -> dict[str, Any]:
    """NE of each model on the same rows, and what follows from it."""
    s = dict(zip(SUMS, sums_K.tolist(), strict=True))
    ne = {m: entropy(s, m, "n", "positives") for m in ("student", "shadow", "oracle")}
    ne["fm"] = entropy(s, "fm_covered", "n_covered", "positives_covered")
    covered = {
        m: entropy(s, f"{m}_covered", "n_covered", "positives_covered")
        for m in ("student", "shadow", "fm", "oracle")
    }
    progressive = {
        m: entropy(s, f"progressive_{m}", "progressive_n", "progressive_positives")
        for m in ("student", "shadow")
    }
    if not has_shadow:
        for group in (ne, covered, progressive):
            group["shadow"] = None
    return {
        "n": s["n"],
        "positives": s["positives"],
        "n_covered": s["n_covered"],
        "ne": ne,
        "ne_covered": covered,
        "ne_progressive": progressive,
        "gain": known(ne_gain, ne["student"], ne["shadow"]),
        "transfer_ratio": known(
            transfer_ratio, covered["student"], covered["shadow"], covered["fm"]
        ),
        "calibration": share(s["student_predicted"], s["positives"]),
        "calibration_shadow": share(s["shadow_predicted"], s["positives"]) if has_shadow else None,
        "calibration_fm": share(s["fm_predicted"], s["positives_covered"]),
        "coverage": share(s["progressive_n_covered"], s["progressive_n"]),
    }


def coverage_after_first(quality: Quality, task: int) -> float | None:
    """Share of rows with a teacher's prediction, in the intervals behind that of the first.

    The teacher's first snapshot comes in the midst of that interval; it counts only if no other
    follows.
    """
    with_teacher, rows = INDEX["progressive_n_covered"], INDEX["progressive_n"]
    sums = [sums[task] for _, sums in quality.curve.items()]
    first = next((i for i, s in enumerate(sums) if s[with_teacher]), len(sums))
    after = sums[first + 1 :] or sums[first:]
    return share(sum(float(s[with_teacher]) for s in after), sum(float(s[rows]) for s in after))


def set_gauges(model: str, quality: Quality, totals: dict[str, Any]) -> None:
    """Show the newest intervals as live metrics, and the AUC of `totals`."""
    recent = quality.recent()
    for t, task in enumerate(quality.tasks):
        figures = compared(recent[t], quality.has_shadow)
        for gauge, value in (
            (TRAIN_NE, figures["ne"]["student"]),
            (TRAIN_SHADOW_NE, figures["ne"]["shadow"]),
            (TRAIN_FM_NE, figures["ne"]["fm"]),
            (TRAIN_GAIN, figures["gain"]),
            (TRAIN_TRANSFER, figures["transfer_ratio"]),
            (TRAIN_CALIBRATION, figures["calibration"]),
            (TRAIN_AUC, totals[task]["auc"]["student"]),
        ):
            if value is not None:
                gauge.labels(model, task).set(value)
    newest = quality.recent(NEWEST_INTERVALS)
    rows = float(newest[:, INDEX["progressive_n"]].sum())
    covered = share(float(newest[:, INDEX["progressive_n_covered"]].sum()), rows)
    if covered is not None:
        TRAIN_COVERAGE.labels(model).set(covered)


def ranked(block: Block, task: int, measure: str, has_shadow: bool) -> Figures:
    """AUC or GAUC by model."""
    return {
        score: finite(getattr(block[f"{score}/{task}"], measure)())
        for score in SCORES
        if has_shadow or score != "shadow"
    }


def entropy(sums: dict[str, float], loss: str, n: str, positives: str) -> float | None:
    """NE of a sum of log loss; None where there is nothing to divide by."""
    if not sums[loss]:
        return None
    return finite(normalised_entropy(sums[loss], sums[positives], sums[n]))


def known(measure: Callable[..., float], *values: float | None) -> float | None:
    """A measure of values that are all known; else None."""
    return None if None in values else finite(measure(*values))


def share(part: float, whole: float) -> float | None:
    """A quotient; None if there is nothing to divide by."""
    return part / whole if whole else None


def finite(value: float) -> float | None:
    """The value, or None in place of NaN, which JSON does not know."""
    return value if math.isfinite(value) else None
