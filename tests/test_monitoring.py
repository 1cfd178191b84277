"""Dashboard, alerts and scrape configuration speak of metrics that exist."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter, Histogram

from monitoring import exporter, metrics

FOLDER = Path(metrics.__file__).parent
NAME = re.compile(r"exfm_\w+")


def exposed() -> dict[str, set[str]]:
    """Every series name that a process may expose, with its label names."""
    found = {}
    for metric in vars(metrics).values():
        if not hasattr(metric, "_labelnames"):
            continue
        (family,) = metric.describe()
        labels = set(metric._labelnames)
        if isinstance(metric, Counter):
            found[f"{family.name}_total"] = labels
        elif isinstance(metric, Histogram):
            found[f"{family.name}_bucket"] = labels | {"le"}
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
        else:
            found[family.name] = labels
    return found


def expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    targets = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    alerts = re.findall(r"^\s+expr: (.+)$", (FOLDER / "alerts.yml").read_text(), re.MULTILINE)
    return [*targets, *alerts]


@pytest.mark.parametrize("expression", expressions())
def test_expression_uses_metrics_and_labels_that_exist(expression: str) -> None:
    known = exposed()
    names = NAME.findall(expression)
    assert names or expression.startswith("up{")
    assert set(names) <= set(known)
    assert expression.count("(") == expression.count(")")
    wanted = {
        label.strip()
        for group in re.findall(r"(?:by|ignoring) \(([^)]*)\)", expression)
        for label in group.split(",")
    }
    wanted |= set(re.findall(r"(\w+)\s*=~?\s*\"", expression)) - {"job"}
    labels = set().union(*(known[name] for name in names)) | {"process"}
    assert wanted <= labels


def test_every_metric_stands_on_the_dashboard() -> None:
    shown = {name for text in expressions() for name in NAME.findall(text)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


def test_panels_do_not_overlap() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        p: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_says_what_and_how_bad() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    count = text.count("- alert: ")
    assert count > 10
    assert len(re.findall(r"severity: (?:page|ticket)", text)) == count
    assert text.count("summary: ") == count


def test_exporter_serves_metrics_where_it_says(tmp_path: Path) -> None:
    port = exporter.start()
    path, entry = exporter.address(tmp_path, "das", "127.0.0.1", port)
    assert path == tmp_path / "das.json"
    with urllib.request.urlopen(str(entry["metrics"]), timeout=10) as answer:
        assert b"exfm_das_repeats_total" in answer.read()
