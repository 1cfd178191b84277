"""A state of which a part is lost stops the join, names the part, and says what to do."""

from __future__ import annotations

import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource
from bytewax.recovery import RecoveryConfig
from bytewax.run import _parse_args
from bytewax.testing import TestingSink, TestingSource, run_main

from flows.das import ShardLogic, build
from flows.join.bytewax_run import Started, insist_on_recovery
from flows.join.read_ahead import ReadAhead
from flows.join.recovery import RecoveryUnreadable, StateFull, speaking
from flows.join.routing import shard_key
from flows.join.seal import SealBroken, Sealed, sealed
from flows.join.sources import EventSource, InputPartition, Item, PredictionSource
from flows.join.state import claim, recovery_folder, shards_folder
from flows.join.written_examples import ExamplesHidden
from flows.panics import Disbanded
from flows.records import BEGIN_MS, END_MS
from flows.runner import (
    Placement,
    create_recovery_store,
    run_flow,
    stop_requested,
    stopping_on_signals,
)
from flows.settings import Settings, SettingsError

START_MS = 1_700_000_000_000


@pytest.fixture
def state(tiny_settings: Settings, tmp_path: Path) -> Path:
    """A state that has segments."""
    claim(tmp_path, tiny_settings)
    create_recovery_store(recovery_folder(tmp_path))
    folder = shards_folder(tmp_path) / "0"
    folder.mkdir(parents=True)
    (folder / "labels-00000000.arrow").write_bytes(b"rows")
    claim(tmp_path, tiny_settings)
    return tmp_path


def test_state_without_its_recovery_store_is_refused(tiny_settings: Settings, state: Path) -> None:
    recovery_folder(state).rename(state / "elsewhere")
    with pytest.raises(RecoveryUnreadable, match=r"recovery is gone, but .* put .* back"):
        claim(state, tiny_settings)


def test_store_that_bytewax_made_is_taken(tiny_settings: Settings, tmp_path: Path) -> None:
    """As `python -m bytewax.recovery` does, before the first start."""
    create_recovery_store(recovery_folder(tmp_path))
    claim(tmp_path, tiny_settings)
    assert (tmp_path / "format.json").exists()
    claim(tmp_path, tiny_settings)


def asked(recovery: object, every_s: float | None = 1.0) -> Started:
    given = None if recovery is None else str(recovery)
    return Started(recovery=given, every_s=every_s, placement=Placement())


def test_bytewax_must_go_on_from_the_state(tiny_settings: Settings, tmp_path: Path) -> None:
    recovery = recovery_folder(tmp_path)
    insist_on_recovery(tmp_path, tiny_settings, asked(None, None))
    claim(tmp_path, tiny_settings)
    right = rf"python -m .*:flow -r {recovery} -s 1 -b 0$"
    for given, wrong in (
        (asked(None), "no recovery directory given, .* goes on only from there"),
        (asked("elsewhere"), "recovery directory elsewhere given, .* goes on only from there"),
        (asked(recovery, 2.0), r"a snapshot every 2 s asked for, but das\.recovery_every_s = 1"),
    ):
        with pytest.raises(SettingsError, match=f"^{wrong}: {right}"):
            insist_on_recovery(tmp_path, tiny_settings, given)
    insist_on_recovery(tmp_path, tiny_settings, asked(recovery))


GROUP = {"BYTEWAX_ADDRESSES": "a:1;b:1;c:1", "BYTEWAX_POD_NAME": "das-2"}
THREE = ("a:1", "b:1", "c:1")


@pytest.mark.parametrize(
    ("arguments", "environ", "found"),
    [
        ("", {}, (None, None, (0, (), 1))),
        ("-s 2 -r here -b 0 -w 2", {"BYTEWAX_RECOVERY_DIRECTORY": "no"}, ("here", 2, (0, (), 2))),
        ("-rhere -s1 -b0 -i 1 -a a:1;b:1;c:1 -w 2", {}, ("here", 1, (1, THREE, 2))),
        ("-s 5", {**GROUP, "BYTEWAX_STATEFULSET_NAME": "das"}, (None, 5, (2, THREE, 1))),
    ],
)
def test_arguments_of_bytewax_are_understood(
    monkeypatch: pytest.MonkeyPatch, arguments: str, environ: dict[str, str], found: tuple[Any, ...]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", "flows.das:flow", *arguments.split()])
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    recovery, every_s, place = found
    started = Started.by(_parse_args())
    placement = started.placement
    assert (started.recovery, started.every_s) == (recovery, every_s)
    assert (placement.process_id, placement.addresses, placement.workers) == place


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is gone"),
        *((text, "is damaged") for text in ("{", "[]", "null", '"x"', "7", '{"topics": 3}')),
        *(
            (text, "is damaged")
            for text in ('{"topics": {"labels": 3}}', '{"topics": {"labels": []}}')
        ),
    ],
)
def test_state_of_unknown_make_is_refused(
    tiny_settings: Settings, state: Path, text: str | None, why: str
) -> None:
    path = state / "format.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(RecoveryUnreadable, match=rf"format\.json {why}.* put .* back"):
        claim(state, tiny_settings)


def test_what_decides_a_replay_may_not_change_and_live_may(
    tiny_settings: Settings, tmp_path: Path
) -> None:
    raw = tiny_settings.model_dump()
    live = {**raw, "teacher": {**raw["teacher"], "version": "newest"}}
    labels = {**raw["topics"]["labels"], "lateness_s": 7.0}
    changes = {
        "topics": {**raw["topics"], "labels": labels},
        "das": {**raw["das"], "repeat_horizon_s": 7.0},
    }
    claim(tmp_path / "live", Settings.model_validate(live))
    claim(tmp_path / "live", Settings.model_validate(live | changes))
    claim(tmp_path / "replay", tiny_settings)
    for key, value in changes.items():
        with pytest.raises(
            SettingsError, match=r"(lateness_s|repeat_horizon_s): .* 7.0 configured"
        ):
            claim(tmp_path / "replay", Settings.model_validate(raw | {key: value}))
    with pytest.raises(SettingsError, match=r"teacher.version: 'as_of' there, 'newest' configured"):
        claim(tmp_path / "replay", Settings.model_validate(live))


def run(recovery: Path) -> None:
    flow, out = Dataflow("few"), list[int]()
    op.output("out", op.input("in", flow, TestingSource([1, 2, 3])), TestingSink(out))
    with speaking(recovery):
        run_flow(flow, Placement(), recovery=recovery, epoch_s=0.0)


@pytest.mark.parametrize(("content", "why"), [(None, "incomplete"), (b"junk" * 999, "damaged")])
def test_damaged_recovery_store_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    recovery = tmp_path / "recovery"
    run(recovery)
    run(recovery)
    part = recovery / "part-1.sqlite3"
    part.unlink() if content is None else part.write_bytes(content)
    with pytest.raises(RecoveryUnreadable, match=rf"recovery is {why}: .* put .* back"):
        run(recovery)


@pytest.fixture
def saved(tiny_settings: Settings, tmp_path: Path) -> Path:
    """A state with a snapshot of two shards and of an input."""
    claim(tmp_path, tiny_settings)
    recovery = recovery_folder(tmp_path)
    create_recovery_store(recovery)
    source = TestingSource([(str(s), ("watermark", s, ("labels", 0), START_MS)) for s in (0, 1)])
    flow = build(tiny_settings, tmp_path, [source], TestingSink([]), ReadAhead(tiny_settings))
    run_main(flow, recovery_config=RecoveryConfig(recovery, timedelta(0)))
    place = pickle.dumps(sealed((3, {0: START_MS})))  # as the inputs of Kafka keep it
    for part in recovery.glob("part-*.sqlite3"):
        query(part, "UPDATE snaps SET ser_change = ? WHERE step_id = 'das.in_0'", place)
    claim(tmp_path, tiny_settings)
    return tmp_path


def with_a_bit_changed(data: bytes) -> bytes:
    """A snapshot with another last number."""
    kept = pickle.loads(data)
    number = kept["state"].rindex(b"\x8a") + 3  # within the eight bytes of a long integer
    changed = bytes([kept["state"][number] ^ 1])
    return pickle.dumps(
        {**kept, "state": kept["state"][:number] + changed + kept["state"][number + 1 :]}
    )


@pytest.mark.parametrize(
    "damage",
    [
        with_a_bit_changed,
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" + data[1:],
        lambda _: b"",
    ],
)
@pytest.mark.parametrize(
    ("key", "what"),
    [(shard_key(1), "shard 1"), ("iterable", "das.in_0, iterable,")],
    ids=["shard", "input"],
)
def test_damaged_snapshot_is_named(
    tiny_settings: Settings, saved: Path, key: str, what: str, damage: Callable[[bytes], bytes]
) -> None:
    found = "SELECT rowid, ser_change FROM snaps WHERE state_key = ?"
    parts = recovery_folder(saved).glob("part-*.sqlite3")
    ((part, number, data),) = [(part, *row) for part in parts for row in query(part, found, key)]
    query(part, "UPDATE snaps SET ser_change = ? WHERE rowid = ?", damage(data), number)
    named = rf"^{part}: the snapshot of {what} is damaged: .*; put the whole state folder"
    with pytest.raises(RecoveryUnreadable, match=named):
        claim(saved, tiny_settings)


def query(path: Path, text: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as store, store:
        return store.execute(text, values).fetchall()


@pytest.mark.parametrize(("free_mib", "kind"), [(1, StateFull), (99, RecoveryUnreadable)])
def test_store_that_sqlite_cannot_open_is_no_damage_on_a_full_disk(
    tiny_settings: Settings,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    kind: type[Exception],
) -> None:
    (recovery_folder(state) / "part-9.sqlite3").mkdir()
    monkeypatch.setattr("flows.join.recovery.free_mib", lambda _: free_mib)
    with pytest.raises(kind, match=r"part-9\.sqlite3 cannot be (read|written): "):
        claim(state, tiny_settings)


def test_processes_that_lose_each_other_on_a_full_disk_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.join.recovery.free_mib", lambda _: 3)
    with pytest.raises(Disbanded, match=f"; make room first: {tmp_path} has 3 MiB left$"):
        raise_inside(tmp_path, Disbanded())


def test_what_cannot_be_unpickled_is_damage(tmp_path: Path) -> None:
    around = RuntimeError("error building StatefulBatch")
    around.__cause__ = SealBroken("its xxh64 is another")
    for error in (pickle.UnpicklingError("it is truncated"), EOFError(), around):
        with pytest.raises(RecoveryUnreadable, match=rf"^{tmp_path} is damaged: a snapshot: it"):
            raise_inside(tmp_path, error)


@pytest.fixture
def searching(tiny_settings: Settings, tmp_path: Path) -> Iterator[ShardLogic]:
    """A shard that will never find what it has written."""
    with stopping_on_signals():
        ahead = ReadAhead(tiny_settings)
        logic = ShardLogic(
            tiny_settings, tmp_path, ahead, lambda _shard, _total: lambda: None, None
        )
        logic.on_batch([("wake", 1)])
        yield logic
    with stopping_on_signals():  # what this process was asked is forgotten
        pass


def test_stop_does_not_wait_for_what_was_written(searching: ShardLogic) -> None:
    searching.on_batch([("stop", 1)])
    assert searching.on_eof() == ([], False)
    assert stop_requested()


def test_end_without_what_was_written_says_where_it_is(
    searching: ShardLogic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.das.MAX_SEARCH_S", 0.01)
    where = "shard 1: topic 'examples' partition 1 cannot be read to its end"
    with pytest.raises(ExamplesHidden, match=f"^{where}.* start again then, nothing is lost$"):
        searching.on_eof()


class PanicException(BaseException):
    """As the one of Bytewax, which is no Exception either."""


@pytest.mark.parametrize("kind", [RuntimeError, PanicException])
def test_full_disk_is_told_from_damage(tmp_path: Path, kind: type[BaseException]) -> None:
    said = 'SqliteFailure(Error { code: DiskFull, extended_code: 13 }, Some("disk is full"))'
    with pytest.raises(StateFull, match=rf"^{tmp_path} cannot be written: SQLite: disk is full; "):
        raise_inside(tmp_path, kind(said))
    with pytest.raises(RecoveryUnreadable, match=r"is damaged: SQLite: not a database; put"):
        raise_inside(tmp_path, kind('SqliteFailure(code: NotADatabase, Some("not a database"))'))
    with pytest.raises(kind, match=r"^another$"):
        raise_inside(tmp_path, kind("another"))


def raise_inside(recovery: Path, error: BaseException) -> None:
    with speaking(recovery):
        raise error


class Silent(InputPartition):
    """An input that has nothing for a while."""

    def __init__(self, settings: Settings, parked: bool) -> None:
        super().__init__(ReadAhead(settings), settings.das.shards)
        self._watermark = END_MS if parked else BEGIN_MS
        self._end_s = time.monotonic() + 2.0

    def snapshot(self) -> Sealed:
        """Nothing to keep."""
        return self._kept((0, {}))

    def _has_ended(self) -> bool:
        return time.monotonic() > self._end_s

    def _watermark_ms(self) -> int:
        return self._watermark

    def _read(self) -> list[Item]:
        return []


class Silence(FixedPartitionedSource[Item, Sealed]):
    """One such partition."""

    def __init__(self, settings: Settings, parked: bool) -> None:
        self._of = (settings, parked)

    def list_parts(self) -> list[str]:
        """The one."""
        return ["silent"]

    def build_part(self, step_id: str, for_part: str, resume_state: Sealed | None) -> Silent:
        """From its beginning."""
        return Silent(*self._of)


@pytest.mark.parametrize("parked", [False, True])
def test_shards_are_in_every_snapshot(
    tiny_settings: Settings, tmp_path: Path, parked: bool
) -> None:
    """Else the store keeps a state for an epoch that has begun again since."""
    every_s = 0.05
    raw = tiny_settings.model_dump()
    raw["das"]["recovery_every_s"] = every_s
    settings = Settings.model_validate(raw)
    claim(tmp_path, settings)
    recovery = recovery_folder(tmp_path)
    create_recovery_store(recovery)
    source = Silence(settings, parked)
    flow = build(settings, tmp_path, [source], TestingSink([]), ReadAhead(settings))
    config = RecoveryConfig(recovery, timedelta(days=1))
    run_main(flow, epoch_interval=timedelta(seconds=every_s), recovery_config=config)
    epochs: dict[str, set[int]] = {}
    for part in recovery.glob("part-*.sqlite3"):
        for key, epoch in query(part, "SELECT state_key, snap_epoch FROM snaps"):
            epochs.setdefault(key, set()).add(epoch)
    of_input = epochs.pop("silent")
    assert len(of_input) > 10
    assert len(epochs) == 2
    assert set(map(frozenset, epochs.values())) == {frozenset(of_input)}


def test_input_wakes_all_shards_before_it_reads(kafka_settings: Settings) -> None:
    ahead = ReadAhead(kafka_settings)
    for source, step in (
        (EventSource(kafka_settings, "labels", ahead, None), "in_1"),
        (PredictionSource(kafka_settings, ahead), "in_2"),
    ):
        with closing(source.build_part(step, "0", None)) as partition:
            for _ in range(3):
                assert partition.next_batch() == [(str(s), ("wake", s)) for s in (0, 1)]
                assert partition.next_batch() == []
                assert partition.next_batch() == []
                partition.snapshot()
