"""Makes the examples of a log again: into another topic, or into Parquet files.

It is the join itself (flows/das.py) over a span of offsets, with a state of its own: the state,
the topics and the consumers of the run stay as they are. Event time alone decides, so the same log
gives the same examples at any speed. Killed, it goes on where its last snapshot was.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.backfill.course import BackfillAhead, Course
from flows.backfill.plan import BackfillRefused, Plan, Request, limits, plan
from flows.backfill.result import Result
from flows.backfill.set_aside import told
from flows.backfill.sources import bounded_sources
from flows.backfill.targets import Target, Watch
from flows.das import build
from flows.join.recovery import WAY_OUT, RecoveryUnreadable, StateFull, speaking
from flows.join.segment_folder import SegmentError
from flows.join.state import claim, made_for, recovery_folder
from flows.run_folder import write_json
from flows.run_lock import held
from flows.runner import Placement, run_flow, stop_requested
from flows.settings import Settings

PLAN = "plan.json"
BACKFILL_VERSION = 3
"""Of what is kept beside the state of the join."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def backfill(settings: Settings, request: Request, target: Target, watch: Watch) -> Result | None:
    """Begin or go on, until all is written or a signal asks to stop.

    Args:
        settings: of the run, with the address of its Kafka.
        request: what to read.
        target: where to write.
        watch: told how far it has come.

    Returns:
        What was written; None: stopped before, the next call goes on.

    Raises:
        BackfillRefused: it is finished already, cannot be what was asked for, or was begun for
            another request or configuration.
        InUse: another process works on it.
        SettingsError: the configuration does not fit the topics.
        RecoveryUnreadable: its state is damaged, or a part of it is gone.
        StateFull: there is no room.
        BrokerUnreachable: no broker answers.
        OffsetLost: retention has deleted what was not read yet.
    """
    settings = target.settings(settings)
    with at_work(target):
        made = planned(settings, request, target)
        with own_state(target):
            return attempt(settings, made, target, watch)


@contextmanager
def at_work(target: Target) -> Iterator[None]:
    """Hold the folder of a backfill; if there is no plan at the end, it goes again.

    Raises:
        BackfillRefused: the backfill is finished, or its folder cannot be written.
        InUse: another process works on it.
    """
    folder = target.folder
    with ExitStack() as stack:
        try:
            target.refuse_finished()
            new = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / ".lock", f"backfill {folder}"))
        except OSError as error:
            why = f"{error.filename} cannot be written: {error.strerror}"
            raise BackfillRefused(f"{target.named}: {why}; name another") from error
        try:
            target.refuse_finished()  # by the process that held it until now
            yield
        finally:
            if not (folder / PLAN).exists():
                remove(folder, new[1:])


def remove(folder: Path, parents: list[Path]) -> None:
    """Remove a folder, and those above it that are empty then, the nearest first."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for parent in parents:
            parent.rmdir()


def attempt(settings: Settings, made: Plan, target: Target, watch: Watch) -> Result | None:
    """Go on as far as it goes; None: a signal asked to stop."""
    state, sink = target.folder / "state", target.sink(settings, made)
    claim(state, settings)
    course = Course(
        on_progress=lambda n: watch.on_offsets(n, made.num_offsets),
        leave_out_quiet=made.leave_out_quiet,
    )
    ahead = BackfillAhead(settings, course)
    inputs = bounded_sources(settings, made, ahead, course)
    flow = build(settings, state, inputs, sink, ahead)
    recovery, every_s = recovery_folder(state), settings.das.recovery_every_s
    with speaking(recovery):
        run_flow(flow, Placement(), recovery=recovery, epoch_s=every_s)
    if stop_requested():
        return None
    result = Result.of(settings, made, course, state, sink.shards.values())
    refuse_strangers(target, result)
    target.finish(settings, sink, result, watch)
    return result


def refuse_strangers(target: Target, result: Result) -> None:
    """Refuse a log of which the configuration accepts nothing; another one begins anew.

    Raises:
        BackfillRefused: of a topic that has events, none was accepted.
    """
    for topic, counts in result.rejected_topics.items():
        (target.folder / PLAN).unlink()
        raise BackfillRefused(
            f"topic {topic!r}: {told(counts)} were set aside, so nothing can be made: this "
            "configuration is not that of the topic; name the right one by --config, or begin "
            f"behind these events by --start{target.spent}"
        )


@contextmanager
def own_state(target: Target) -> Iterator[None]:
    """Inside, an error of the state says what to do: it holds nothing that the log does not.

    Raises:
        RecoveryUnreadable: it is damaged, or a part of it is gone.
        StateFull: there is no room for it.
    """
    try:
        yield
    except Exception as error:
        reason: BaseException | None = error
        while reason is not None:
            if isinstance(reason, BackfillRefused | StateFull):
                raise reason from None
            if isinstance(reason, RecoveryUnreadable | SegmentError):
                what = str(reason).removesuffix(f"; {WAY_OUT}")
                raise RecoveryUnreadable(f"{what}; {target.anew}") from error
            if isinstance(reason, OSError) and reason.errno in NO_ROOM:
                raise StateFull(Path(reason.filename or target.folder), reason.strerror) from error
            reason = reason.__cause__
        raise


def planned(settings: Settings, request: Request, target: Target) -> Plan:
    """The plan of the first attempt, made now if this is it.

    Raises:
        BackfillRefused: the first attempt was for another request or configuration.
    """
    path = target.folder / PLAN
    asked, wanted = as_json(request), configured(settings)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        refuse_change(target, "of another range", found.get("asked", {}), asked)
        refuse_change(target, "with another configuration", found.get("configured", {}), wanted)
        return Plan.of_json(found["plan"])
    made = plan(settings, request)
    target.prepare(settings)
    write_json(path, {"asked": asked, "configured": wanted, "plan": made.as_json()})
    return made


def refuse_change(target: Target, what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse what is not as in the first attempt.

    Raises:
        BackfillRefused: something is not.
    """
    changed = [key for key in now if then.get(key) != now[key]]
    if changed:
        lines = [f"{key}: {then.get(key)!r} then, {now[key]!r} now" for key in changed]
        raise BackfillRefused(
            f"{target.folder} holds an unfinished backfill {what}; ask for that one "
            f"to go on with it, or {target.anew}:\n" + "\n".join(lines)
        )


def as_json(request: Request) -> dict[str, Any]:
    """A request in plain data."""
    raw = {**asdict(request), **limits(request.from_ms, request.to_ms)}
    for option in ("starts", "ends"):
        raw[option] = {f"{topic}:{p}": offset for (topic, p), offset in raw[option].items()}
    return raw


def configured(settings: Settings) -> dict[str, Any]:
    """What of the configuration decides which examples a log means."""
    topics = settings.topics
    return {
        **made_for(settings),
        "backfill_version": BACKFILL_VERSION,
        "domains": list(settings.domains),
        "topics.impressions.format": topics.impressions.format,
        "topics.labels.format": topics.labels.format,
        "topics.impressions.lateness_s": topics.impressions.lateness_s,
        "topics.labels.lateness_s": topics.labels.lateness_s,
        "das.repeat_horizon_s": settings.das.repeat_horizon_s,
    }
