"""The same job in Flink SQL: two interval joins in event time, one task slot, state on the heap.

    PYTHON_OF_FLINK -m benchmarks.das.flink_job --events DIR --scratch DIR

With `bootstrap` in --spec the same tables are Kafka topics, read to where they end now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyflink.table import EnvironmentSettings, TableEnvironment

from benchmarks.das.job import INTS, NUMBERS, TEXTS, WINDOW_S, Clock, arguments, counts, report

KIND = {**dict.fromkeys(INTS, "BIGINT"), **dict.fromkeys(TEXTS, "STRING")}
FEATURES = {**KIND, **dict.fromkeys(NUMBERS, "FLOAT"), "recent_ads": "ARRAY<BIGINT>"}
COLUMNS: dict[str, dict[str, str]] = {
    "impressions": {"domain": "STRING", **FEATURES},
    "predictions": {"fm_version": "BIGINT", "fm_logit_click": "FLOAT"},
    "labels": {"task": "STRING", "value": "TINYINT"},
}
OPTIONS = {
    "execution.runtime-mode": "streaming",
    "parallelism.default": "1",
    "pipeline.object-reuse": "true",
    "state.backend.type": "hashmap",
}
JOIN = """
INSERT INTO examples
SELECT i.impression_id, i.ts_ms, {columns}, p.fm_version, p.fm_logit_click,
       COALESCE(l.`value`, CAST(0 AS TINYINT)) AS label
FROM impressions i
LEFT JOIN predictions p ON i.impression_id = p.impression_id
  AND p.ts BETWEEN i.ts - INTERVAL '1' SECOND AND i.ts + INTERVAL '1' SECOND
LEFT JOIN labels l ON i.impression_id = l.impression_id
  AND l.ts >= i.ts AND l.ts < i.ts + INTERVAL '{minutes}' MINUTE
"""


def main() -> None:
    """Join, count, report."""
    given = arguments(__doc__)
    spec: dict[str, Any] = given.spec
    tables = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    for key, value in {**OPTIONS, **spec.get("options", {})}.items():
        tables.get_config().set(key, value)
    for name, columns in COLUMNS.items():
        tables.execute_sql(source(name, columns, connector(name, given.events, spec)))
    out = given.scratch / "examples"
    tables.execute_sql(sink(out))
    names = ", ".join(f"i.`{name}`" for name in COLUMNS["impressions"])
    minutes = round(spec.get("window_s", WINDOW_S) / 60)
    clock = Clock()
    with clock.running():
        tables.execute_sql(JOIN.format(columns=names, minutes=minutes)).wait()
    report(clock, *counts(out.glob("*")))


def connector(name: str, events: Path, spec: dict[str, Any]) -> dict[str, str]:
    """Options of an input."""
    if "bootstrap" not in spec:
        return {"connector": "filesystem", "path": str(events / f"{name}.jsonl"), "format": "json"}
    return {
        "connector": "kafka",
        "topic": spec["topics"][name],
        "properties.bootstrap.servers": spec["bootstrap"],
        "properties.group.id": "flink",
        "scan.startup.mode": "earliest-offset",
        "scan.bounded.mode": "latest-offset",
        "format": "json",
    }


def source(name: str, columns: dict[str, str], options: dict[str, str]) -> str:
    """Table of an input, with its event time and watermark."""
    listed = "".join(f"`{column}` {kind}, " for column, kind in columns.items())
    return (
        f"CREATE TABLE {name} (impression_id STRING, ts_ms BIGINT, {listed}"
        "ts AS TO_TIMESTAMP_LTZ(ts_ms, 3), WATERMARK FOR ts AS ts) "
        f"WITH ({with_options(options)})"
    )


def sink(path: Path) -> str:
    """Table of the examples: files of JSON lines."""
    listed = "".join(f"`{name}` {kind}, " for name, kind in COLUMNS["impressions"].items())
    options = {"connector": "filesystem", "path": str(path), "format": "json"}
    return (
        f"CREATE TABLE examples (impression_id STRING, ts_ms BIGINT, {listed}"
        "fm_version BIGINT, fm_logit_click FLOAT, label TINYINT) "
        f"WITH ({with_options(options)})"
    )


def with_options(options: dict[str, str]) -> str:
    """Options as SQL."""
    return ", ".join(f"'{key}' = '{value}'" for key, value in options.items())


if __name__ == "__main__":
    main()
