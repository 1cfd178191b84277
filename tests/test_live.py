"""The live view holds a run's figures, and fits terminals down to 80 x 24."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from flows.report.scrape import Scraper
from flows.run.launch import Launched
from flows.run.live import line
from flows.run.live_panels import Frame
from flows.run.process import FLOWS, SERVE
from flows.run.supervisor import Group, Supervisor
from flows.run_folder import RunFolder, write_json
from flows.settings import load

ROOT = Path(__file__).resolve().parents[1]
QUALITY = ("feed_late", "conversion", "0.8000", "0.9000", "0.7000", "+11.11 %", "53.0 %")
SERVED = ("00:16:30", "15.0 s", "1.5", "2.0")
FLOW = ("pending", "1,234", "97.3 %", "impressions/s", "lag examples", "7", "3.5", "9.5")
PROCESSES = (*FLOWS, SERVE, "load", "events")
"""Groups without a process."""


def exposition(at_s: int) -> str:
    """Metrics of a run, all from one process, `at_s` seconds after its start."""
    lines = [
        f'exfm_source_events_total{{topic="impressions"}} {100 * at_s}',
        'exfm_source_lag_messages{topic="examples",partition="0"} 7',
        'exfm_source_watermark_seconds{topic="impressions",partition="0"} 1002',
        'exfm_das_pending_impressions{shard="0"} 1234',
    ]
    for model in ("feed_late", "search_late", "video_early"):
        for task in ("click", "conversion"):
            have = f'{{model="{model}",task="{task}"}}'
            figures = {"ne": 0.8, "shadow_ne": 0.9, "fm_ne": 0.7, "ne_gain": 1 / 9}
            figures |= {"transfer": 0.53, "calibration": 1.0}
            lines += [f"exfm_train_{name}_ratio{have} {value}" for name, value in figures.items()]
        have = f'{{model="{model}"}}'
        lines += [
            f"exfm_train_fm_coverage_ratio{have} 0.973",
            f"exfm_serve_version_seconds{have} 990",
            f"exfm_serve_newest_example_seconds{have} 987",
            f'exfm_serve_request_seconds_bucket{{model="{model}",le="0.001"}} 0',
            f'exfm_serve_request_seconds_bucket{{model="{model}",le="0.002"}} {10 * at_s}',
            f'exfm_serve_request_seconds_bucket{{model="{model}",le="+Inf"}} {10 * at_s}',
        ]
    return "\n".join(lines)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Launched]:
    """A run that has been measured for some seconds, with processes that never start."""
    folder = RunFolder(tmp_path)
    settings = load(ROOT / "configs" / "market.toml")
    scraper = Scraper(folder.processes)
    write_json(folder.processes / "das.json", {"process": "das", "pid": 1, "metrics": "http://-/"})
    for at_s in (1, 2):
        (folder.processes / "das.1.prom").write_text(exposition(at_s))
        scraper.scrape()
    load_report = {"requests": 20, "failed": 0, "p50_ms": 3.5, "p99_ms": 9.5}
    write_json(folder.root / "load.json", load_report)
    with Supervisor(folder.logs, dict(os.environ)) as supervisor:
        for name in PROCESSES:
            supervisor.add(Group(name=name, commands=list))
        yield Launched(settings=settings, folder=folder, supervisor=supervisor, scraper=scraper)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 45), (120, 45), (200, 60)])
def test_view_shows_every_figure_on_any_terminal(run: Launched, width: int, height: int) -> None:
    console = Console(width=width, height=height, file=StringIO(), record=True)
    console.print(Frame(run, Text("events are written")))
    text = console.export_text()
    assert len(text.rstrip("\n").split("\n")) <= height
    assert max(map(len, text.split("\n"))) <= width
    for word in ("events are written", *QUALITY, *SERVED, *FLOW, *PROCESSES):
        assert word in text, word


def test_teacher_is_shown_where_there_is_room(run: Launched) -> None:
    for height, shown in ((45, True), (22, False)):
        console = Console(width=80, height=height, file=StringIO(), record=True)
        console.print(Frame(run, Text("")))
        assert any(row.split()[1:3] == ["fm", "click"] for row in rows(console)) == shown


def rows(console: Console) -> list[str]:
    return [row for row in console.export_text().split("\n") if len(row.split()) > 3]


def test_run_fits_on_a_line(run: Launched) -> None:
    text = line(run)
    assert "feed_late/click +11.11 %" in text
    assert "lag 7, pending 1,234, requests 20 (0 failed)" in text
