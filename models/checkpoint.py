"""One file that holds everything to go on from: tensors and plain data, whole or not at all.

Layout: magic, SHA-256 of the rest, then a torch archive read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.durable import write_atomically

MAGIC = b"exfmckp1"


class CheckpointError(ValueError):
    """A file is not a complete checkpoint; the message names file and reason."""


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace the file in one step; after a crash it holds the old content or the new.

    Args:
        path: the file; its folder is created.
        tensors: written as they are now.
        meta: anything that JSON can hold.
    """
    buffer = io.BytesIO()
    torch.save({"tensors": dict(tensors), "meta": json.dumps(dict(meta))}, buffer)
    content = buffer.getbuffer()
    write_atomically(path, MAGIC, hashlib.sha256(content).digest(), content)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain data of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, cut short, or changed since it was written.
    """
    data = path.read_bytes()
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not data.startswith(MAGIC) or len(data) < start:
        raise CheckpointError(f"{path}: not a checkpoint of format {MAGIC.decode()}")
    content = memoryview(data)[start:]
    if hashlib.sha256(content).digest() != data[len(MAGIC) : start]:
        raise CheckpointError(f"{path}: checksum differs: the file is damaged or cut short")
    parts = torch.load(io.BytesIO(content), weights_only=True)
    return parts["tensors"], json.loads(parts["meta"])
