"""The picture of a run is drawn from its quality documents alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.picture import picture, ticks_of
from flows.report.palette import CURVES

SVG = "{http://www.w3.org/2000/svg}"


def of_model(model: str, gain: float | None) -> dict[str, object]:
    """Ten intervals of a minute in which the losses fall."""
    intervals = [
        {
            "task": "click",
            "interval_start_ms": 60_000 * i,
            **{"n": 100.0, "positives": 20.0, "student": 50.0 - i, "shadow": 51.0 - i},
            **{"n_covered": 100.0, "positives_covered": 20.0, "fm_covered": 40.0, "oracle": 35.0},
        }
        for i in range(10)
    ]
    totals = {"click": {"gain": gain}}
    head = {"model": model, "tasks": ["click"], "interval_ms": 60_000}
    return {**head, "intervals": intervals, "totals": totals}


def test_picture_has_a_panel_a_student_within_its_frame() -> None:
    documents = {name: of_model(name, 0.0156) for name in ("a<b", "search", "fm")}
    root = ET.fromstring(picture(documents))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in words if text and text.endswith(", click")] == [
        "a<b, click",
        "search, click",
    ]
    assert words.count("gain +1.56 %") == 2
    lines = list(root.iter(f"{SVG}polyline"))
    assert {line.get("stroke") for line in lines} == set(CURVES.values())
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in lines:
        for place in line.attrib["points"].split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


@pytest.mark.parametrize(
    ("lowest", "highest", "ticks"),
    [(0.74, 0.98, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]), (0.0, 3.6, [0, 1, 2, 3, 4])],
)
def test_ticks_are_round_and_enclose_the_range(
    lowest: float, highest: float, ticks: list[float]
) -> None:
    assert ticks_of(lowest, highest) == pytest.approx(ticks)
