"""Jars come from a Maven repository of the test's own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.kafka.jars import JarError, class_path

GOOD = b"the jar that was locked"
PLACE = Path("org/example/thing/1.0/thing-1.0.jar")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder served as the first Maven repository; the cache is `tmp_path/cache`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        settings = tmp_path / "jgo.conf"
        address = f"http://127.0.0.1:{server.server_port}"
        settings.write_text(
            f"[settings]\nrepo_cache = {tmp_path / 'cache'}\n[repositories]\nmirror = {address}\n"
        )
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.delenv("M2_REPO", raising=False)
        yield folder
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a word on stderr."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "jgo.lock.toml"
    path.write_text(
        '[metadata]\njgo_version = "3"\n[[dependencies]]\ngroupId = "org.example"\n'
        'artifactId = "thing"\nversion = "1.0"\npackaging = "jar"\n'
        f'sha256 = "{hashlib.sha256(GOOD).hexdigest()}"\n'
    )
    return path


def publish(mirror: Path, content: bytes) -> None:
    jar = mirror / PLACE
    jar.parent.mkdir(parents=True)
    jar.write_bytes(content)


def test_class_path_fetches_a_missing_jar(mirror: Path, lock: Path) -> None:
    publish(mirror, GOOD)
    assert [path.read_bytes() for path in class_path(lock)] == [GOOD]


def test_class_path_replaces_what_an_interrupted_download_left(
    mirror: Path, lock: Path, tmp_path: Path
) -> None:
    publish(mirror, GOOD)
    partial_jar = tmp_path / "cache" / PLACE
    partial_jar.parent.mkdir(parents=True)
    partial_jar.write_bytes(GOOD[:5])
    assert class_path(lock) == [partial_jar]
    assert partial_jar.read_bytes() == GOOD


def test_class_path_refuses_another_jar_under_the_locked_name(mirror: Path, lock: Path) -> None:
    publish(mirror, b"something else")
    with pytest.raises(JarError, match=r"org\.example:thing:1\.0.*SHA-256"):
        class_path(lock)
