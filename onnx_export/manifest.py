"""What a snapshot says about itself: model, version, features, files and their checksums. No torch.

The manifest is the last file of a snapshot to be written, and seals the others: it lists their
sizes and sha256 digests, and carries a checksum of its own content.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from models.schema import Encoding, Name, Value

MANIFEST = "manifest.json"
MODEL = "model.onnx"
WEIGHTS = "weights.bin"


class SnapshotCorrupt(ValueError):
    """A snapshot's files are not what its manifest says; the message names file and rule."""


class FileEntry(Value):
    """Size and digest of one file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(Value):
    """Everything that a reader of a snapshot needs besides the files it lists."""

    format_version: Literal[1] = 1
    model: Name
    version: int
    """The boundary of event time (ms) that the snapshot was taken at."""
    newest_example_ms: int
    """Event time of the newest example that the weights learned from."""
    num_examples: Annotated[int, Field(ge=0)]
    """Examples learned so far."""
    encoding: Encoding
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Columns of the graph's logits."""
    files: dict[str, FileEntry]
    quality: dict[str, float] = Field(default_factory=dict)
    created_ms: int
    """Wall clock of the writer; says nothing about the content."""

    def content(self) -> Manifest:
        """The same without the wall clock: equal for equal snapshots."""
        return self.model_copy(update={"created_ms": 0})

    def to_bytes(self) -> bytes:
        """JSON, with the checksum of everything else in it."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "checksum": checksum(body)}, indent=1).encode() + b"\n"


def checksum(body: dict[str, object]) -> str:
    """Digest of a manifest's canonical JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse(data: bytes, where: str) -> Manifest:
    """The manifest in a file's bytes.

    Args:
        data: what `Manifest.to_bytes` returned.
        where: named in the error.

    Raises:
        SnapshotCorrupt: it is not a manifest, or its checksum does not agree.
    """
    try:
        body = json.loads(data)
        expected = body.pop("checksum")
        manifest = Manifest.model_validate(body)
    except (ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        raise SnapshotCorrupt(f"{where}: not a manifest: {error}") from error
    if checksum(manifest.model_dump(mode="json")) != expected:
        raise SnapshotCorrupt(f"{where}: checksum does not agree with the content")
    return manifest
