"""The snapshot store: a folder of immutable versions, and a pointer to the one that serves.

    <root>/<model>/<version>/{model.onnx,weights.bin,manifest.json}
    <root>/<model>/latest.json      version that serves, newest ever published, newest retired
    <root>/<model>/frontier.json    no version at or below this will appear any more
    <root>/templates/               exported graphs without weights, by structure

A version is written in a draft folder, manifest last, and appears by one rename, so a reader sees
all of it or nothing, wherever the writer is killed. Retired versions are unlinked, never truncated:
a process that maps their weights keeps them. A model has one publisher at a time; `rollback` may
run beside it. No torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from models.durable import sync_folder, write_atomically
from onnx_export.draft import Draft, verify_files
from onnx_export.manifest import MANIFEST, Manifest, SnapshotCorrupt, parse

BEGIN_MS = -(1 << 60)
"""Frontier of a model that has announced nothing."""
TEMPLATES = "templates"


class SnapshotConflict(RuntimeError):
    """A version exists with other content: a shared store, or training that does not repeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """Content of `latest.json`."""

    version: int
    """Serves."""
    newest: int
    """Newest version ever published; after a rollback, above `version`."""
    first: int
    """Oldest version ever published."""
    retired: int = BEGIN_MS
    """Newest version ever retired."""


class SnapshotStore:
    """A folder of snapshots.

    Args:
        root: created when something is written.
        keep: versions kept of a model, at least 2; None keeps all.
        durable: survive a loss of power too (fsync), not only kill -9.
    """

    def __init__(self, root: Path, keep: int | None = None, *, durable: bool = True) -> None:
        if keep is not None and keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep}")
        self.root = root
        self.keep = keep
        self.durable = durable
        self._swept: set[str] = set()

    @property
    def templates(self) -> Path:
        """Folder of exported graphs."""
        return self.root / TEMPLATES

    def path(self, model: str, version: int) -> Path:
        """Folder of a version, whether or not it exists."""
        return self.root / model / str(version)

    def models(self) -> list[str]:
        """Names of the models with at least one published version."""
        return sorted(path.parent.name for path in self.root.glob("*/latest.json"))

    def versions(self, model: str) -> list[int]:
        """Published versions that are still kept, ascending."""
        try:
            names = os.listdir(self.root / model)
        except FileNotFoundError:
            return []
        return sorted(int(n) for n in names if n.removeprefix("-").isdecimal())

    def latest(self, model: str) -> int | None:
        """The version that serves, or None; one small read, cheap enough to poll."""
        pointer = self.pointer(model)
        return pointer.version if pointer else None

    def pointer(self, model: str) -> Pointer | None:
        """What `latest.json` says, or None if nothing was published."""
        try:
            return Pointer(**json.loads((self.root / model / "latest.json").read_bytes()))
        except FileNotFoundError:
            return None

    def as_of(self, model: str, ts_ms: int) -> int | None:
        """The last version at or below `ts_ms`, or None if there never was one.

        Raises:
            LookupError: versions that might be it were retired.
        """
        pointer = self.pointer(model)
        found = [v for v in self.versions(model) if v <= ts_ms]
        if pointer is None or ts_ms < pointer.first:
            return None
        if found and found[-1] >= pointer.retired:
            return found[-1]
        raise LookupError(
            f"{model}: the version as of {ts_ms} was retired (newest retired {pointer.retired}); "
            f"keep more than {self.keep} versions"
        )

    def manifest(self, model: str, version: int, *, verify: bool = False) -> Manifest:
        """A version's manifest.

        Args:
            model: its name.
            version: a published version.
            verify: read the files too and compare their checksums.

        Raises:
            FileNotFoundError: there is no such version.
            SnapshotCorrupt: the files are not what was published.
        """
        manifest = read_manifest(self.path(model, version))
        if (manifest.model, manifest.version) != (model, version):
            raise SnapshotCorrupt(
                f"{self.path(model, version)}: holds {manifest.model} {manifest.version}"
            )
        if verify:
            verify_files(self.path(model, version), manifest)
        return manifest

    def frontier(self, model: str) -> int:
        """No version at or below this event time (ms) will appear; BEGIN_MS if not announced."""
        try:
            return int(json.loads((self.root / model / "frontier.json").read_bytes())["ts_ms"])
        except FileNotFoundError:
            return BEGIN_MS

    def set_frontier(self, model: str, ts_ms: int) -> None:
        """Announce that no version at or below `ts_ms` will appear; it never moves back."""
        if ts_ms > self.frontier(model):
            self._replace(model, "frontier.json", {"ts_ms": ts_ms})

    def draft(self, model: str, version: int) -> Draft:
        """An unpublished folder to write a version's files into; a context manager."""
        folder = self.root / model
        folder.mkdir(parents=True, exist_ok=True)
        if model not in self._swept:  # what a killed publisher left
            for left in folder.glob(".draft-*"):
                shutil.rmtree(left, ignore_errors=True)
            self._swept.add(model)
        return Draft(folder / f".draft-{version}-{os.getpid()}", durable=self.durable)

    def publish(self, draft: Draft, manifest: Manifest) -> Manifest:
        """Make a draft a version, point `latest` at it, retire what is beyond `keep`.

        Publishing equal content again changes nothing, and undoes no rollback.

        Returns:
            The manifest as published, with the files of the draft.

        Raises:
            SnapshotConflict: the version exists with other content.
        """
        model, version = manifest.model, manifest.version
        manifest = manifest.model_copy(update={"files": dict(draft.entries)})
        draft.write(MANIFEST, manifest.to_bytes())
        with self._locked(model):
            if self.path(model, version).exists():
                self._require_equal(manifest)
            else:
                draft.folder.rename(self.path(model, version))
                if self.durable:
                    sync_folder(self.root / model)
            pointer = self.pointer(model)
            if pointer is None or version > pointer.newest:
                pointer = (
                    replace(pointer, version=version, newest=version)
                    if pointer
                    else Pointer(version=version, newest=version, first=version)
                )
                self._point(model, pointer)
            self._retire(model, pointer)
        return manifest

    def rollback(self, model: str, version: int | None = None) -> int:
        """Serve an older version until a newer one is published.

        Args:
            model: its name.
            version: None takes the one before the version that serves.

        Returns:
            The version that serves now.

        Raises:
            LookupError: there is no such version.
            SnapshotCorrupt: its files are not what was published.
        """
        with self._locked(model):
            pointer, versions = self.pointer(model), self.versions(model)
            if pointer is None:
                raise LookupError(f"{model}: nothing was published in {self.root}")
            if version is None:
                before = [v for v in versions if v < pointer.version]
                if not before:
                    raise LookupError(f"{model}: no version before {pointer.version} is kept")
                version = before[-1]
            if version not in versions:
                raise LookupError(f"{model}: no version {version}; kept: {versions}")
            self.manifest(model, version, verify=True)
            self._point(model, replace(pointer, version=version))
        return version

    def _require_equal(self, manifest: Manifest) -> None:
        there = self.manifest(manifest.model, manifest.version)
        if there.content() != manifest.content():
            raise SnapshotConflict(
                f"{self.path(manifest.model, manifest.version)}: exists with other content; "
                "a version never changes, and each run has a store of its own"
            )

    def _retire(self, model: str, pointer: Pointer) -> None:
        if self.keep is None:
            return
        gone = [v for v in self.versions(model)[: -self.keep] if v != pointer.version]
        if not gone:
            return
        if gone[-1] > pointer.retired:
            self._point(model, replace(pointer, retired=gone[-1]))
        for version in gone:  # renamed first: half a version is never seen
            aside = self.root / model / f".draft-retired-{version}"
            self.path(model, version).rename(aside)
            shutil.rmtree(aside)

    def _point(self, model: str, pointer: Pointer) -> None:
        self._replace(model, "latest.json", asdict(pointer))

    def _replace(self, model: str, name: str, content: dict[str, int]) -> None:
        data = json.dumps(content).encode()
        write_atomically(self.root / model / name, data, durable=self.durable)

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        (self.root / model).mkdir(parents=True, exist_ok=True)
        with (self.root / model / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a snapshot's folder.

    Raises:
        FileNotFoundError: there is none.
        SnapshotCorrupt: it is not what was published.
    """
    path = folder / MANIFEST
    return parse(path.read_bytes(), str(path))
