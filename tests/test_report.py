"""Metrics and quality documents become series, a summary, tables, checks and one HTML file."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, start_http_server
from rich.console import Console

from flows.learning.quality import SUMS, Quality
from flows.learning.quality_report import document
from flows.report.checks import as_json, checks_table, demo_checks
from flows.report.figures import event_now_s, freshness_s, lag, of, percentile_s
from flows.report.ne_curve import EventTime, curves, ne_curve
from flows.report.report import write_report
from flows.report.scrape import Sample, Scraper, parse, rate
from flows.report.sheet import Cell, Column, Sheet
from flows.report.summary import TEACHER, summarise
from flows.report.summary_tables import tables
from flows.run_folder import RunFolder, write_json
from flows.settings import Settings, load
from models.metrics import normalised_entropy

ROOT = Path(__file__).resolve().parents[1]
HOUR_S = 3600.0


@pytest.fixture
def settings() -> Settings:
    return load(ROOT / "configs" / "market.toml")


def sample(at_s: float, **processes: str) -> Sample:
    """A sample of processes' expositions; `_` in a process's name stands for `-`."""
    values = {name.replace("_", "-"): parse(text) for name, text in processes.items()}
    return Sample(at_s=at_s, values=values)


def quality_of(tasks: tuple[str, ...], gain: float) -> Quality:
    """Thirty intervals in which the student's loss is `gain` below its shadow's."""
    quality = Quality(tasks, 1000, has_shadow=True)
    for step in range(30):
        ((sums, _),) = quality.curve.of(np.array([step * 1000]))
        for name in SUMS:
            sums[:, SUMS.index(name)] = {
                "positives": 30.0,
                "positives_covered": 30.0,
                "progressive_positives": 30.0,
                "student": 60.0 * (1 - gain),
                "student_covered": 60.0 * (1 - gain),
                "shadow": 60.0,
                "shadow_covered": 60.0,
                "fm_covered": 50.0,
                "oracle": 40.0,
            }.get(name, 100.0)
    return quality


def run_folder(tmp_path: Path, settings: Settings, gain: float, failed: int = 0) -> RunFolder:
    folder = RunFolder(tmp_path / "a<b")
    for student in settings.students:
        quality = quality_of(student.tasks, gain)
        content = document(student.name, student.domains, quality, has_users=False)
        write_json(folder.quality / f"{student.name}.json", content)
    point = {"at_s": 1.0, "requests": 5.0, "p50_ms": 2.0, "p99_ms": 3.0}
    load_report = {"requests": 5, "failed": failed, "p50_ms": 2.0, "p99_ms": 3.0, "rows": 100}
    write_json(folder.root / "load.json", {**load_report, "series": [point, point], "versions": {}})
    return folder


def samples_of(settings: Settings, swaps: int, pace: int = 1) -> list[Sample]:
    """Five seconds of a run in which event time passes `pace` times as fast as wall time."""

    def exposition(at_s: int) -> str:
        lines = [f'exfm_source_events_total{{topic="impressions"}} {100 * at_s}']
        lines += [f'exfm_source_lag_messages{{topic="impressions",partition="0"}} {at_s}']
        lines += [f'exfm_das_windows_closed_total{{domain="feed"}} {90 * at_s}']
        now_s = 1000 + pace * at_s
        lines += [f'exfm_source_watermark_seconds{{topic="impressions",partition="0"}} {now_s}']
        return "\n".join(lines)

    served = "\n".join(
        f'exfm_serve_swaps_total{{model="{s.name}"}} {swaps}\n'
        f'exfm_serve_newest_example_seconds{{model="{s.name}"}} 990'
        for s in settings.students
    )
    return [sample(float(i), das=exposition(i), serve=served) for i in range(1, 6)]


def test_rate_is_increase_over_time() -> None:
    series = [sample(i, das=f'exfm_x_total{{topic="a"}} {7 * i}') for i in range(10)]
    assert rate(series, "exfm_x_total", 5.0, topic="a") == pytest.approx(7.0)
    assert rate(series, "exfm_x_total", 5.0, topic="b") == 0.0
    assert rate(series[:1], "exfm_x_total") == 0.0


def test_figures_follow_their_definitions() -> None:
    end = 1 << 60
    moment = sample(
        0.0,
        das_0='exfm_source_watermark_seconds{topic="i",partition="0"} 500\n'
        'exfm_source_lag_messages{topic="i",partition="0"} 3\n'
        'exfm_source_lag_messages{topic="i",partition="1"} 4\n',
        das_1=f'exfm_source_watermark_seconds{{topic="i",partition="1"}} {end}\n',
        das_quick='exfm_source_lag_messages{topic="i",partition="0"} 5\n',
        serve='exfm_serve_newest_example_seconds{model="m"} 480\n',
    )
    assert event_now_s(moment, "i") == 500
    assert freshness_s(moment, "i") == {"m": 20}
    assert lag(moment) == {"i": 7}
    assert set(of(moment, "das").values) == {"das-0", "das-1"}


def test_percentile_is_interpolated_between_the_bounds_of_its_bucket() -> None:
    def moment(*counts: int) -> Sample:
        bounds = zip(("0.001", "0.002", "+Inf"), counts, strict=True)
        lines = [f'exfm_x_seconds_bucket{{model="m",le="{le}"}} {count}' for le, count in bounds]
        return sample(0.0, serve="\n".join(lines))

    earlier, later = moment(5, 5, 5), moment(15, 25, 25)
    assert percentile_s("exfm_x_seconds", 0.5, earlier, later, model="m") == pytest.approx(0.001)
    assert percentile_s("exfm_x_seconds", 0.75, earlier, later) == pytest.approx(0.0015)
    assert percentile_s("exfm_x_seconds", 0.99, earlier, moment(5, 5, 6)) is None
    assert percentile_s("exfm_x_seconds", 0.5, later, later) is None
    assert percentile_s("exfm_x_seconds", 0.5, earlier, later, model="n") is None


def test_freshness_is_unknown_where_events_are_read_ahead(
    tmp_path: Path, settings: Settings
) -> None:
    folder = run_folder(tmp_path, settings, gain=0.01)
    samples = samples_of(settings, 4, pace=100)
    summary = summarise(settings, folder, samples, {})
    assert summary["serving"]["freshness_s"] == {}
    write_report(settings, folder, samples, summary)
    assert "<h3>Freshness" not in folder.report.read_text(encoding="utf-8")


def test_scraper_keeps_counters_of_dead_processes(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    counter = Counter("exfm_things_total", "Things", ["kind"], registry=registry)
    gauge = Gauge("exfm_level", "Level", registry=registry)
    counter.labels("a").inc(2)
    gauge.set(5)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    write_json(tmp_path / "das.json", {"process": "das", "pid": 1, "metrics": url})
    scraper = Scraper(tmp_path)
    assert scraper.scrape().total("exfm_things_total", kind="a") == 2
    write_json(tmp_path / "das.json", {"process": "das", "pid": 2, "metrics": url})
    gauge.set(7)
    moment = scraper.scrape()
    assert (moment.total("exfm_things_total"), moment.total("exfm_level")) == (4, 7)
    server.shutdown()
    server.server_close()
    thread.join()
    assert scraper.scrape().total("exfm_things_total") == 4
    counter.labels("a").inc(10)
    (tmp_path / "das.2.prom").write_bytes(generate_latest(registry))
    assert scraper.scrape().total("exfm_things_total") == 14
    assert [s.total("exfm_things_total") for s in scraper.samples] == [2, 4, 4, 14]


def test_ne_curve_adds_intervals_up() -> None:
    rng = np.random.default_rng(0)
    intervals = [
        {"interval_start_ms": 10 * i, "n": 50.0, "positives": float(p), "student": float(x)}
        for i, (p, x) in enumerate(
            zip(rng.integers(5, 20, 40), rng.uniform(10, 30, 40), strict=True)
        )
    ]
    curve = dict(ne_curve(intervals, "student", "n", "positives"))
    rows = intervals[17:21]
    sums = [sum(row[name] for row in rows) for name in ("student", "positives", "n")]
    assert curve[200] == pytest.approx(normalised_entropy(*sums))
    silent = [{**row, "student": None} for row in intervals]
    assert ne_curve(silent, "student", "n", "positives") == []


def test_teacher_is_no_student_of_itself() -> None:
    content = document(TEACHER, ["feed"], quality_of(("click",), gain=0.0), has_users=False)
    assert set(curves(content, "click")) == {"FM", "Bayes"}


def test_all_curves_of_a_run_share_their_origin() -> None:
    early = {"interval_ms": 60_000, "intervals": [{"interval_start_ms": 120_000}]}
    late = {"interval_ms": 60_000, "intervals": [{"interval_start_ms": 420_000}]}
    axis = EventTime([late, early])
    assert (axis.unit, axis.length) == ("minutes", 6.0)
    assert axis.of([120_000, 480_000]) == [0.0, 6.0]
    weeks = {"interval_ms": 14 * 86_400_000, "intervals": [{"interval_start_ms": 0}]}
    assert (EventTime([weeks]).unit, EventTime([]).length) == ("days", 0.0)


@pytest.mark.parametrize(
    ("width", "shown"), [(40, {"a", "b", "c"}), (20, {"a", "c"}), (10, {"a"}), (3, {"a"})]
)
def test_narrow_terminal_drops_columns_in_their_order(width: int, shown: set[str]) -> None:
    sheet = Sheet(
        columns=[Column(head="a"), Column(head="b", drop=1), Column(head="c", drop=2)],
        rows=[[Cell("1" * 5), Cell("2" * 6), Cell("3" * 7)]],
    )
    console = Console(width=width, file=StringIO(), record=True)
    console.print(sheet)
    assert set(console.export_text().split("\n")[0].split()) == shown


def test_sheet_as_html_escapes_and_carries_tones() -> None:
    sheet = Sheet(
        title="a<b", columns=[Column(head="x", left=True)], rows=[[Cell("<", "bad")], [Cell("-")]]
    )
    assert sheet.html().count("a&lt;b") == 1
    assert '<td class="left bad">&lt;</td>' in sheet.html()
    assert '<td class="left dim">-</td>' in sheet.html()


@pytest.mark.parametrize(
    ("gain", "swaps", "failed", "broken"),
    [
        (0.01, 4, 0, set()),
        (0.004, 4, 0, {"NE gain over the shadow, click"}),
        (0.01, 4, 1, {"failed requests"}),
        (
            *(0.01, 3, 0),
            {f"snapshot swaps of {n}" for n in ("feed_late", "search_late", "video_early")},
        ),
    ],
)
def test_checks_hold_only_if_every_bar_is_reached(
    tmp_path: Path, settings: Settings, gain: float, swaps: int, failed: int, broken: set[str]
) -> None:
    folder = run_folder(tmp_path, settings, gain, failed)
    summary = summarise(settings, folder, samples_of(settings, swaps), {})
    checks = demo_checks(settings, summary)
    assert {check.name for check in checks if not check.passed} == broken
    assert json.loads(json.dumps(as_json(checks)))[0]["rule"].startswith("> 0.5 %")
    Console(file=StringIO()).print(checks_table(checks))


def test_nothing_learned_fails_every_check_but_breaks_nothing(
    tmp_path: Path, settings: Settings
) -> None:
    folder = RunFolder(tmp_path)
    summary = summarise(settings, folder, [], {"das": ("running", 0)})
    assert not any(check.passed for check in demo_checks(settings, summary))
    write_report(settings, folder, [], summary)
    assert folder.report.stat().st_size > 0


def test_tables_show_only_what_the_summary_holds(tmp_path: Path, settings: Settings) -> None:
    folder = run_folder(tmp_path, settings, gain=0.0123)
    summary = summarise(settings, folder, samples_of(settings, 4), {"das": ("finished", 2)})
    write_json(folder.summary, summary)
    console = Console(width=200, record=True, file=StringIO())
    console.print(tables(json.loads(folder.summary.read_bytes())))
    text = console.export_text()
    for word in ("feed_late", "+1.23 %", "impressions read", "500", "2.0 / 3.0 ms", "13.0 s"):
        assert word in text


def test_every_key_of_the_summary_is_described(tmp_path: Path, settings: Settings) -> None:
    folder = run_folder(tmp_path, settings, gain=0.01)
    summary = summarise(settings, folder, samples_of(settings, 4), {"das": ("finished", 0)})
    text = (ROOT / "docs" / "summary.md").read_text()
    keys = {*summary, "checks"} | {
        key for value in summary.values() if isinstance(value, dict) for key in value
    }
    keys -= {s.name for s in settings.students} | {"das"}
    keys |= set(summary["models"]["feed_late"]["click"])
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_report_is_one_file_that_needs_no_network(tmp_path: Path, settings: Settings) -> None:
    folder = run_folder(tmp_path, settings, gain=0.01)
    series = samples_of(settings, 4)
    write_report(settings, folder, series, summarise(settings, folder, series, {}))
    page = folder.report.read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "<link" not in page
    assert "a&lt;b" in page
    assert page.count("Plotly.newPlot(") >= 8
    for title in ("feed_late, conversion", "Freshness", "Throughput", "Request latency"):
        assert f"<h3>{title}</h3>" in page
    assert '<td class="good">+1.00 %</td>' in page
    for curve in ("student", "shadow", "FM", "Bayes"):
        assert f'"name":"{curve}"' in page
