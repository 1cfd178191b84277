"""The property tests of the join, with many more random logs than a test run takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from flows.report.checks import Check

TESTS = "tests/test_shard.py"
VARIABLE = "EXFM_TEST_CASES"
OPTIONS = ("-q", "--timeout=0", "-p", "no:cacheprovider", "--numprocesses", "2")


def random_logs(cases: int) -> Check:
    """Run the properties on so many random logs each."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", TESTS, *OPTIONS],
        env={**os.environ, VARIABLE: str(cases)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    said = done.stdout.splitlines()
    counts = re.search(r"(\d+) passed", said[-1] if said else "")
    return Check(
        name=f"random logs, interleavings and crashes against brute force, {TESTS}",
        value=said[-1] if said else f"exit code {done.returncode}",
        rule=f"{cases:,} logs for each property, all pass",
        passed=done.returncode == 0 and counts is not None,
    )
