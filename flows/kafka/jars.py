"""The jars of the embedded Kafka: `jgo.toml` names them, `jgo.lock.toml` pins each by its SHA-256.

    python -m flows.kafka.jars          fetch what the local Maven cache lacks
    python -m flows.kafka.jars --lock   resolve jgo.toml anew and write the lock

jgo's own settings apply: its configuration file may name mirrors, M2_REPO moves the cache.
"""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.env import EnvironmentSpec, LockedDependency, LockFile
from jgo.env._lockfile import compute_sha256, compute_spec_hash
from jgo.maven import MavenContext
from jgo.parse import Coordinate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SPEC_NAME = "jgo.toml"
LOCK_NAME = "jgo.lock.toml"
NUM_DOWNLOADS = 8
NUM_ATTEMPTS = 3


class JarError(RuntimeError):
    """A jar could not be fetched, or is not the one that was locked."""


def class_path(lock_path: Path | None = None, *, show_progress: bool = False) -> list[Path]:
    """The locked jars in the local Maven cache, fetched if missing, each checked.

    Args:
        lock_path: None: the project's own lock.
        show_progress: draw a bar on stderr if that is a terminal.

    Raises:
        JarError: a jar cannot be fetched, or its checksum is not the locked one.
    """
    lock = LockFile.load(lock_path or _declared(LOCK_NAME))
    context = _maven()
    with (
        _sole_writer(context.repo_cache),
        ThreadPoolExecutor(NUM_DOWNLOADS) as pool,
        _progress(show_progress) as progress,
    ):
        found = pool.map(lambda jar: _fetch(context, jar), lock.dependencies)
        tracked = progress.track(
            found, total=len(lock.dependencies), description="Jars of Apache Kafka"
        )
        return list(tracked)


def write_lock() -> None:
    """Resolve `jgo.toml` with all that it brings and write every version and checksum down."""
    spec_path = _declared(SPEC_NAME)
    spec = EnvironmentSpec.load(spec_path)
    context = _maven()
    roots = [context.create_dependency(Coordinate.parse(text)) for text in spec.coordinates]
    direct, transitive = context.resolver.resolve(roots)
    wanted = direct + [jar for jar in transitive if jar.scope in ("compile", "runtime")]
    unique = {jar.artifact.key: jar for jar in wanted}
    lock = LockFile.from_resolved_dependencies(
        list(unique.values()),
        environment_name=spec.name,
        java_version=spec.java_version,
        spec_hash=compute_spec_hash(spec_path),
    )
    lock.save(spec_path.with_name(LOCK_NAME))


def _declared(name: str) -> Path:
    """A file beside the packages (checkout) or, in an installed wheel, inside this one."""
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1], here):
        if (folder / name).is_file():
            return folder / name
    raise JarError(f"{name} must be in {here.parents[1]} or {here}, found in neither")


def _maven() -> MavenContext:
    settings = GlobalSettings.load()
    mirrors = {**settings.repositories, "central": MAVEN_CENTRAL_URL}
    return MavenContext(repo_cache=settings.repo_cache, local_repos=[], remote_repos=mirrors)


def _fetch(context: MavenContext, jar: LockedDependency) -> Path:
    """The jar's path in the cache; what an interrupted download left there is fetched again."""
    project = context.project(jar.groupId, jar.artifactId)
    artifact = project.at_version(jar.version).artifact(jar.classifier or "", jar.packaging)
    problem = "not fetched"
    for _attempt in range(NUM_ATTEMPTS):
        try:
            path = artifact.resolve()
        except (OSError, RuntimeError) as error:  # requests raises OSErrors
            problem = str(error)
            continue
        found = compute_sha256(path)
        if found == jar.sha256:
            return path
        problem = f"{path} has SHA-256 {found}, {LOCK_NAME} says {jar.sha256}"
        path.unlink()
    name = f"{jar.groupId}:{jar.artifactId}:{jar.version}"
    raise JarError(f"jar {name} not available after {NUM_ATTEMPTS} attempts: {problem}")


@contextmanager
def _sole_writer(cache: Path) -> Iterator[None]:
    """Let one process at a time write into the cache; jgo itself does not guard it."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".exfm.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _progress(wanted: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (wanted and console.is_terminal))


def main() -> None:
    """Fetch the jars, or lock them."""
    parser = argparse.ArgumentParser(prog="python -m flows.kafka.jars", description=__doc__)
    parser.add_argument("--lock", action="store_true", help="resolve jgo.toml, write the lock")
    if parser.parse_args().lock:
        write_lock()
    class_path(show_progress=True)


if __name__ == "__main__":
    main()
