"""A live market in which the teacher falls silent, then a server that swaps fifty times."""

from __future__ import annotations

import time
from collections.abc import Callable

from flows.config_file import dump
from flows.inference.teacher import store_path
from flows.report.checks import Check
from flows.report.figures import event_now_s, load_report
from flows.run.demo import EVENTS, LOAD, default_config, everyone_is_up
from flows.run.launch import Launched, exfm, launched
from flows.run.supervisor import Group
from flows.run_folder import RunFolder
from flows.settings import load
from flows.wording import number, percent
from models.durable import write_atomically
from onnx_export.manifest import MODEL, WEIGHTS, Manifest
from onnx_export.store import SnapshotStore

SILENT_S, STREAM_S = 60.0, 600.0
COVERED = 0.9
"""Coverage before the teacher is stopped."""
SLACK_S = 10.0
"""Beyond window and grace, for buckets and a busy machine."""
NUM_SWAPS = 50
SWAP_TIMEOUT_S = 10.0


def silent_teacher_and_swaps(folder: RunFolder) -> list[Check]:
    """Points 4 and 5: FM inference stopped half-way; a server under load during fifty swaps."""
    settings = load(default_config("market"))
    write_atomically(folder.config, dump(settings).encode())
    simulate = exfm("simulate", f"--seconds={STREAM_S:g}", folder=folder)
    load_command = exfm("load", "--rate=50", folder=folder)
    with launched(settings, folder) as run:
        run.wait(lambda: everyone_is_up(run))
        run.supervisor.add(Group(name=LOAD, commands=lambda: [load_command]))
        run.supervisor.add(Group(name=EVENTS, commands=lambda: [simulate], restart=False))
        checks = silent_teacher(run)
        for name in ("vm-training", EVENTS):
            run.supervisor.stop(name)
        return [*checks, *swaps_under_load(run)]


def silent_teacher(run: Launched) -> list[Check]:
    """Stop FM inference, and watch coverage, training and the join."""
    student = run.settings.students[0].name
    run.wait(lambda: (coverage(run, student) or 0.0) >= COVERED)
    before = coverage(run, student)
    run.supervisor.stop("fm-inference")
    lags_s: list[float] = []
    applied = run.scraper.newest.total("exfm_train_examples_total", model=student)

    def watch() -> None:
        lag_s = join_lag_s(run)
        if lag_s is not None:
            lags_s.append(lag_s)

    wait_s(run, SILENT_S, watch)
    learned = run.scraper.newest.total("exfm_train_examples_total", model=student) - applied
    after = coverage(run, student)
    settings = run.settings
    bound_s = settings.windows_ms[-1] / 1000 + settings.das.teacher_grace_s + SLACK_S
    return [
        Check(
            name="coverage in the metrics, FM inference stopped",
            value=f"{percent(before)} before, {percent(after)} after",
            rule="falls below half of what it was",
            passed=before is not None and after is not None and after < before / 2,
        ),
        Check(
            name="examples applied without FM inference",
            value=f"{number(learned, 0)} by {student} in {SILENT_S:.0f} s",
            rule="> 0",
            passed=learned > 0,
        ),
        Check(
            name="the join without FM inference",
            value=f"at most {max(lags_s, default=-1.0):.1f} s behind the stream",
            rule=f"<= {bound_s:.0f} s: longest window, teacher_grace_s, {SLACK_S:.0f} s",
            passed=bool(lags_s) and max(lags_s) <= bound_s,
        ),
    ]


def swaps_under_load(run: Launched) -> list[Check]:
    """Publish fifty versions, then a damaged one, while requests go on."""
    model = run.settings.students[0].name
    root = store_path(run.settings, run.folder)
    store = SnapshotStore(root, run.settings.store.keep)
    first_requests = load_report(run.folder).get("requests", 0)
    served = 0
    for _ in range(NUM_SWAPS):
        version = republish(store, model)
        served += int(wait_until_served(run, model, version))
    good = store.latest(model)
    damaged = publish_damaged(store, model)
    wait_s(run, 5.0)
    versions = load_report(run.folder)["versions"][model]
    refused = run.scraper.newest.total("exfm_serve_refused_versions_total", model=model)
    run.supervisor.stop(LOAD)
    report = load_report(run.folder)
    return [
        Check(
            name=f"swaps of {model} under load",
            value=f"{served}, {report['requests'] - first_requests:,} requests",
            rule=f"{NUM_SWAPS}",
            passed=served == NUM_SWAPS,
        ),
        Check(
            name="failed requests",
            value=" ".join(
                [f"{report['failed']} of {report['requests']:,}", *map(str, report["failures"])]
            ),
            rule="0",
            passed=report["failed"] == 0,
        ),
        Check(
            name="damaged snapshot",
            value=f"refused {refused:.0f} times, version {versions[-1]} answers",
            rule=f"refused, {good} answers, never {damaged}",
            passed=refused >= 1 and versions[-1] == good and damaged not in versions,
        ),
    ]


def wait_s(run: Launched, seconds: float, on_tick: Callable[[], None] = lambda: None) -> None:
    """Keep everything running for a while."""
    end_s = time.monotonic() + seconds
    run.wait(lambda: time.monotonic() >= end_s, on_tick=on_tick, every_s=0.5)


def coverage(run: Launched, model: str) -> float | None:
    """Share of the newest examples with a prediction, as the trainer's metrics say."""
    return run.scraper.newest.largest("exfm_train_fm_coverage_ratio", model=model)


def join_lag_s(run: Launched) -> float | None:
    """How far the slowest shard has closed event time behind the stream."""
    newest = run.scraper.newest
    now_s = event_now_s(newest, run.settings.topics.impressions.name)
    marks = [value for _, value in newest.each("exfm_das_watermark_seconds") if value > 0]
    return None if now_s is None or not marks else now_s - min(marks)


def republish(store: SnapshotStore, model: str) -> int:
    """Publish the newest snapshot's files again, as the next version."""
    manifest, version = next_version(store, model)
    source = store.path(model, version)
    with store.draft(model, manifest.version) as draft:
        for name in manifest.files:
            draft.write(name, (source / name).read_bytes())
        store.publish(draft, manifest)
    return manifest.version


def publish_damaged(store: SnapshotStore, model: str) -> int:
    """Publish a version one of whose weights differs from its digest."""
    manifest, version = next_version(store, model)
    source = store.path(model, version)
    with store.draft(model, manifest.version) as draft:
        for name in manifest.files:
            draft.write(name, (source / name).read_bytes())
        weights = bytearray((draft.folder / WEIGHTS).read_bytes())
        weights[len(weights) // 2] ^= 0xFF
        (draft.folder / WEIGHTS).write_bytes(weights)
        assert (draft.folder / MODEL).exists()
        store.publish(draft, manifest)
    return manifest.version


def next_version(store: SnapshotStore, model: str) -> tuple[Manifest, int]:
    """Manifest of the version after the newest, and the newest."""
    newest = store.versions(model)[-1]
    manifest = store.manifest(model, newest)
    return manifest.model_copy(update={"version": newest + 1}), newest


def wait_until_served(run: Launched, model: str, version: int) -> bool:
    """Whether an answer of that version was seen in time."""
    deadline_s = time.monotonic() + SWAP_TIMEOUT_S

    def seen() -> bool:
        versions = load_report(run.folder).get("versions", {}).get(model, [])
        return version in versions

    run.wait(lambda: seen() or time.monotonic() > deadline_s)
    return seen()
