"""The same job in Pathway: two interval joins, static mode, one thread.

PYTHON_OF_PATHWAY -m benchmarks.das.pathway_job --events DIR --scratch DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pathway as pw

from benchmarks.das.job import INTS, NUMBERS, TEXTS, WINDOW_S, Clock, arguments, counts, report

IMPRESSION = {
    "impression_id": str,
    "domain": str,
    "ts_ms": int,
    **dict.fromkeys(INTS, int),
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(NUMBERS, float),
    "recent_ads": list[int],
}
PREDICTION = {"impression_id": str, "ts_ms": int, "fm_version": int, "fm_logit_click": float}
LABEL = {"impression_id": str, "ts_ms": int, "task": str, "value": int}


def main() -> None:
    """Join, count, report."""
    given = arguments(__doc__)
    out = given.scratch / "examples.jsonl"
    clock = Clock()
    with clock.running():
        pw.io.jsonlines.write(examples(given.events), out)
        pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    report(clock, *counts([out]))


def examples(events: Path) -> Any:
    """The table of the examples."""
    shown = read(events / "impressions.jsonl", IMPRESSION)
    predicted = read(events / "predictions.jsonl", PREDICTION)
    labels = read(events / "labels.jsonl", LABEL)
    with_logits = shown.interval_join_left(
        predicted,
        shown.ts_ms,
        predicted.ts_ms,
        pw.temporal.interval(0, 0),
        shown.impression_id == predicted.impression_id,
    ).select(*(shown[name] for name in IMPRESSION), predicted.fm_version, predicted.fm_logit_click)
    return with_logits.interval_join_left(
        labels,
        with_logits.ts_ms,
        labels.ts_ms,
        pw.temporal.interval(0, WINDOW_S * 1000 - 1),
        with_logits.impression_id == labels.impression_id,
    ).select(
        *(with_logits[name] for name in (*IMPRESSION, *list(PREDICTION)[2:])),
        label=pw.coalesce(labels.value, 0),
    )


def read(path: Path, columns: dict[str, Any]) -> Any:
    """A file of JSON lines as a table."""
    schema = pw.schema_from_types(**columns)
    return pw.io.jsonlines.read(str(path), schema=schema, mode="static")


if __name__ == "__main__":
    main()
