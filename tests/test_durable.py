"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from models.durable import write_atomically

FULL = Path("/dev/full")
"""What is written there finds no room."""


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("durable", [False, True])
def test_file_without_room_is_named_and_stays_as_it_was(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "it"
    write_atomically(path, b"before")
    draft = tmp_path / f".it.{os.getpid()}.{threading.get_ident()}"
    draft.symlink_to(FULL)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'") as raised:
        write_atomically(path, b"behind", durable=durable)
    assert raised.value.errno == errno.ENOSPC
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"it": b"before"}
