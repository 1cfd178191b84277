"""The snapshot store: atomic, checked, idempotent, and kept within bounds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.schema import Encoding, Feature
from onnx_export import session
from onnx_export.draft import Draft, verify_files
from onnx_export.manifest import MANIFEST, Manifest, SnapshotCorrupt
from onnx_export.store import BEGIN_MS, SnapshotConflict, SnapshotStore

MODEL = "ads"


def manifest(version: int, created_ms: int = 1) -> Manifest:
    return Manifest(
        model=MODEL,
        version=version,
        newest_example_ms=version,
        num_examples=3,
        encoding=Encoding(features=(Feature(name="domain", kind="categorical"),)),
        tasks=("click",),
        files={},
        quality={"ne_click": 0.9},
        created_ms=created_ms,
    )


def publish(
    store: SnapshotStore, version: int, weights: bytes = b"ww", created_ms: int = 1
) -> None:
    with store.draft(MODEL, version) as draft:
        draft.write("model.onnx", b"graph")
        draft.write("weights.bin", weights)
        store.publish(draft, manifest(version, created_ms))


def left_over(store: SnapshotStore) -> list[str]:
    return [name for name in os.listdir(store.root / MODEL) if name.startswith(".draft")]


def test_published_version_is_read_back(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    read = SnapshotStore(tmp_path).manifest(MODEL, 1000, verify=True)
    assert read.content() == manifest(1000).model_copy(
        update={"files": read.files, "created_ms": 0}
    )
    assert sorted(read.files) == ["model.onnx", "weights.bin"]
    assert sorted(os.listdir(store.path(MODEL, 1000))) == [MANIFEST, "model.onnx", "weights.bin"]
    assert store.models() == [MODEL]
    assert store.latest(MODEL) == 1000
    assert left_over(store) == []


def test_empty_store_has_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "absent")
    assert store.models() == []
    assert store.versions(MODEL) == []
    assert store.latest(MODEL) is None
    assert store.frontier(MODEL) == BEGIN_MS
    assert store.as_of(MODEL, 10**15) is None
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    path = store.path(MODEL, 1000) / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        data[len(data) // 2] ^= 1
    if damage != "remove":
        path.write_bytes(data[:-2] if damage == "truncate" else data)
    expected = FileNotFoundError if (name, damage) == (MANIFEST, "remove") else SnapshotCorrupt
    with pytest.raises(expected, match=name):
        store.manifest(MODEL, 1000, verify=True)


def test_version_moved_to_another_name_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    store.path(MODEL, 1000).rename(store.path(MODEL, 2000))
    with pytest.raises(SnapshotCorrupt, match="holds ads 1000"):
        store.manifest(MODEL, 2000)


def test_equal_content_is_published_again_without_effect(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    publish(store, 1000, created_ms=99)
    assert store.manifest(MODEL, 1000).created_ms == 1
    assert left_over(store) == []


def test_other_content_under_a_version_is_a_conflict(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    with pytest.raises(SnapshotConflict, match="1000: exists with other content"):
        publish(store, 1000, weights=b"x")
    store.manifest(MODEL, 1000, verify=True)
    assert left_over(store) == []


def test_publishing_an_older_version_leaves_the_pointer(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 2000)
    publish(store, 1000)
    assert store.latest(MODEL) == 2000
    assert store.versions(MODEL) == [1000, 2000]


def test_rollback_holds_until_a_newer_version(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for version in (1000, 2000, 3000):
        publish(store, version)
    assert store.rollback(MODEL) == 2000
    assert store.rollback(MODEL, 1000) == 1000
    publish(store, 3000)  # a restarted trainer repeats its last snapshot
    assert store.latest(MODEL) == 1000
    publish(store, 4000)
    assert store.latest(MODEL) == 4000


@pytest.mark.parametrize(("model", "version"), [(MODEL, 5), (MODEL, None), ("none", None)])
def test_rollback_to_nothing_is_refused(tmp_path: Path, model: str, version: int | None) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    with pytest.raises(LookupError, match=model):
        store.rollback(model, version)
    assert store.latest(MODEL) == 1000


def test_rollback_to_a_damaged_version_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)
    publish(store, 2000)
    (store.path(MODEL, 1000) / "weights.bin").write_bytes(b"other")
    with pytest.raises(SnapshotCorrupt):
        store.rollback(MODEL)
    assert store.latest(MODEL) == 2000


def test_versions_beyond_keep_are_retired(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=2)
    for version in (1000, 2000):
        publish(store, version)
    store.rollback(MODEL)
    mapped = (store.path(MODEL, 1000) / "weights.bin").open("rb")
    publish(store, 3000)
    assert store.versions(MODEL) == [2000, 3000]
    with mapped:
        assert mapped.read() == b"ww"  # an open file outlives its retirement
    publish(store, 4000)
    store.rollback(MODEL, 3000)
    assert store.versions(MODEL) == [3000, 4000]
    assert left_over(store) == []


def test_version_that_serves_is_not_retired(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=2)
    for version in (2000, 3000):
        publish(store, version)
    store.rollback(MODEL)
    publish(store, 1000)
    assert store.versions(MODEL) == [2000, 3000]
    assert store.latest(MODEL) == 2000


def test_as_of_finds_old_boundaries_and_refuses_retired_ones(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=2)
    for version in (1000, 2000, 4000):
        publish(store, version)
    assert store.as_of(MODEL, 999) is None
    assert store.as_of(MODEL, 3999) == 2000
    assert store.as_of(MODEL, 4000) == 4000
    with pytest.raises(LookupError, match="keep more than 2"):
        store.as_of(MODEL, 1500)


def test_version_retired_while_it_is_opened_is_missing_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1000)

    def verify_after_retirement(folder: Path, manifest: Manifest) -> None:
        shutil.rmtree(folder)
        verify_files(folder, manifest)

    monkeypatch.setattr(session, "verify_files", verify_after_retirement)
    with pytest.raises(FileNotFoundError, match="was retired while it was opened"):
        session.Scorer.open(store.path(MODEL, 1000))


def test_frontier_never_moves_back(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, durable=False)
    store.set_frontier(MODEL, 5000)
    store.set_frontier(MODEL, 4000)
    assert SnapshotStore(tmp_path).frontier(MODEL) == 5000
    assert store.models() == []


def test_keep_below_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        SnapshotStore(tmp_path, keep=1)


def test_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)

    def fail(draft: Draft) -> None:
        draft.write("weights.bin", b"w")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), store.draft(MODEL, 1000) as draft:
        fail(draft)
    assert store.versions(MODEL) == []
    assert left_over(store) == []


PUBLISH_FOR_EVER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from onnx_export.manifest import Manifest
from onnx_export.store import SnapshotStore
manifest = Manifest.model_validate_json({manifest!r})
store = SnapshotStore(Path({root!r}), keep=3, durable=False)
for version in itertools.count(store.latest("ads") or 1):
    with store.draft("ads", version) as draft:
        draft.write("weights.bin", bytes([version % 256]) * 100_000)
        store.publish(draft, manifest.model_copy(update={{"version": version}}))
    print(version, flush=True)
"""


def test_kill_in_the_middle_of_publishing_leaves_whole_versions(tmp_path: Path) -> None:
    code = PUBLISH_FOR_EVER.format(
        here=str(Path(__file__).parents[1]),
        root=str(tmp_path),
        manifest=manifest(0).model_dump_json(),
    )
    store = SnapshotStore(tmp_path)
    for kill in range(8):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3 + 7 * kill):
                published = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        latest = store.latest(MODEL)
        assert latest is not None
        assert latest >= published
        for version in store.versions(MODEL):
            assert store.manifest(MODEL, version, verify=True).version == version
    publish(store, store.versions(MODEL)[-1] + 10)
    assert left_over(store) == []
