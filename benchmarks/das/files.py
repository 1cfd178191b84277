"""JSON files to examples on one core: the project's flow beside the same job of other engines.

Engines take turns, each pinned to the same core; the better of two rounds counts, but for those of
`ONE_ROUND`. Time begins when the interpreter, or the virtual machine, is up, the engine is
imported, and the compiled code of exfm is loaded. All must come to the examples, positives and
predictions that the events were made with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.das import peers
from benchmarks.das.alone import decoding_cpu_s
from benchmarks.das.engine import EngineFailed, Outcome, one_core
from benchmarks.das.events import EventFiles, event_files
from benchmarks.das.figures import Figure, at_least, unmeasured
from benchmarks.das.ours import run_ours
from benchmarks.das.part import say

ROUNDS = 2
WINDOW_ROWS = (100_000, 50_000, 20_000)
"""Impressions that stock Bytewax gets: the first of these that it finishes.

Its rate falls with their number, so fewer favour it."""
LEAST_OVER = {"Flink SQL": 6.0, "Pathway": 6.0, "Bytewax join_window": 50.0}
LEAST_OF_DECODING = 60.0
GROUP = "JSON files, one core"
OURS, FLINK_FREE, WINDOWS = "exfm", "Flink SQL, all cores", "Bytewax join_window"
DECODING = "decoding alone"
ONE_ROUND = (FLINK_FREE, WINDOWS)
Job = Callable[[], Outcome]


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Rates by engine, and their ratios."""
    say("the events")
    files = event_files(rows, work_folder)
    best: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    jobs = engines(files, work_folder)
    for turn in range(1, ROUNDS + 1):
        for engine, job in jobs.items():
            if engine in failed or (engine in ONE_ROUND and turn > 1):
                continue
            say(f"{engine}, round {turn} of {ROUNDS}")
            try:
                found = job()
            except EngineFailed as error:
                failed[engine] = str(error)
                continue
            if engine not in best or found.seconds < best[engine].seconds:
                best[engine] = found
    answer = figures(files, best, failed)
    if OURS in best:
        answer.append(share_of_decoders(files, jobs[OURS], work_folder))
    return answer


def engines(files: EventFiles, work_folder: Path) -> dict[str, Job]:
    """The job of each engine."""
    cores, folder = [one_core()], files.impressions.parent
    return {
        OURS: partial(run_ours, files.num_impressions, work_folder, limit_s=peers.LIMIT_S),
        DECODING: partial(
            run_ours,
            files.num_impressions,
            work_folder,
            limit_s=peers.LIMIT_S,
            only_decode=True,
        ),
        "Flink SQL": partial(peers.flink, folder, cores=cores),
        "Pathway": partial(peers.pathway, folder, cores=cores),
        WINDOWS: partial(windows, files, cores),
        FLINK_FREE: partial(peers.flink, folder),
    }


def windows(files: EventFiles, cores: list[int]) -> Outcome:
    """Stock Bytewax on as many of the first impressions as it finishes in time.

    Raises:
        EngineFailed: it could not be installed, failed, or was too slow on the fewest.
    """
    *more, fewest = (min(rows, files.num_impressions) for rows in WINDOW_ROWS)
    for rows in more:
        try:
            return peers.bytewax(files.impressions.parent, rows, cores=cores)
        except EngineFailed as error:
            say(f"{WINDOWS} on {rows:,} impressions: {error}")
    return peers.bytewax(files.impressions.parent, fewest, cores=cores)


def figures(files: EventFiles, best: dict[str, Outcome], failed: dict[str, str]) -> list[Figure]:
    """Rates, ratios, and whether all engines agree."""
    found = [
        Figure(
            name=f"files: {engine}",
            value=events_of(files, outcome) / outcome.seconds,
            unit="events/s",
            note=f"{outcome.seconds:.1f} s, {outcome.cpu_s:.1f} CPU s; "
            f"{outcome.examples:,} examples, {outcome.positives:,} positives",
            drawn_as="" if engine in (FLINK_FREE, DECODING) else f"{GROUP}: {engine}",
        )
        for engine, outcome in best.items()
    ]
    found += [unmeasured(f"files: {engine}", "events/s", why) for engine, why in failed.items()]
    if OURS not in best:
        return [*found, unmeasured("files: exfm runs", "", failed[OURS], bar="runs to its end")]
    ours = best[OURS]
    for engine, bar in LEAST_OVER.items():
        name = f"files: exfm over {engine}"
        if engine in best:
            found.append(ratio(name, files, ours, best[engine], bar))
        else:
            found.append(unmeasured(name, "x", failed[engine], bar=f">= {bar:g}"))
    if DECODING in best:
        found.append(share_of_decoding(ours, best[DECODING]))
    return [*found, agreement(files, best)]


def share_of_decoding(ours: Outcome, decoding: Outcome) -> Figure:
    """What the whole flow reaches of the rate of its own decoder alone, in CPU seconds."""
    return Figure(
        name="files: exfm of its decoding alone",
        value=100 * decoding.cpu_s / ours.cpu_s,
        unit="%",
        note=f"{decoding.cpu_s:.1f} of {ours.cpu_s:.1f} CPU s, checks and addresses included",
    )


def share_of_decoders(files: EventFiles, ours: Job, work_folder: Path) -> Figure:
    """What the whole flow reaches of the rate of decoders alone, in CPU seconds.

    The flow runs once more before the decoders and once behind them, and the better of these counts
    beside the best of the decoders' rounds: the machine's speed changes with the minutes.

    The bar is on the fastest library tried, whether or not it refuses what is no event. The flow's
    own reader is not among them: `share_of_decoding` tells of that, without a bar.
    """
    name = "files: exfm of decoding alone, fastest decoder"
    say("decoders by themselves, exfm before and behind them")
    try:
        before = ours()
        cpu_s = decoding_cpu_s(files, work_folder)
        ours_s = min(before.cpu_s, ours().cpu_s)
    except EngineFailed as error:
        return unmeasured(name, "%", str(error), bar=f">= {LEAST_OF_DECODING:g}")
    shares = {decoder: 100 * seconds / ours_s for decoder, seconds in cpu_s.items()}
    note = ", ".join(f"{decoder} {share:.0f} %" for decoder, share in shares.items())
    return at_least(name, min(shares.values()), "%", LEAST_OF_DECODING, note)


def events_of(files: EventFiles, outcome: Outcome) -> float:
    """Input events of a job; one on fewer impressions had as many fewer events of each kind."""
    return files.num_events * outcome.examples / files.num_impressions


def ratio(name: str, files: EventFiles, ours: Outcome, peer: Outcome, bar: float) -> Figure:
    """How many times faster we are, by the wall clock; by CPU seconds in the note."""
    more = events_of(files, ours) / events_of(files, peer)
    by_cpu = more * peer.cpu_s / ours.cpu_s
    return at_least(
        name, more * peer.seconds / ours.seconds, "x", bar, f"{by_cpu:.3g} in CPU seconds"
    )


def agreement(files: EventFiles, best: dict[str, Outcome]) -> Figure:
    """How many engines, of those that read everything, found what was there to find."""
    wanted = (files.num_impressions, files.num_positives, files.num_impressions)
    whole = {e: found for e, found in best.items() if e not in (WINDOWS, DECODING)}
    wrong = [f"{e}: {found.counts}" for e, found in whole.items() if found.counts != wanted]
    return at_least(
        "files: engines with the same examples, positives, predictions",
        len(whole) - len(wrong),
        f"of {len(whole)}",
        len(whole),
        f"{wanted}; other: {', '.join(wrong)}" if wrong else f"{wanted}",
    )
