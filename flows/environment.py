"""What `python -m bytewax.run flows.das:flow` is told, and the other flows likewise.

EXFM_CONFIG is the path of the configuration, EXFM_RUN the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flows.join.state import may_have_grown
from flows.kafka.client import ensure_topics
from flows.run.errors import end, told
from flows.run_folder import RunFolder
from flows.settings import Settings, SettingsError, load


def described() -> tuple[Settings, RunFolder]:
    """Settings and folder of the run, whose topics are there then; else the process ends.

    Bytewax's runner would show where in the code it went wrong; what is wrong is one sentence.
    """
    try:
        settings, folder = named(os.environ)
        ensure_topics(settings, may_have_grown=may_have_grown(folder.state / "das"))
    except Exception as error:
        found = told(error)
        if found is None:
            raise
        end(*found)
    return settings, folder


def named(environ: Mapping[str, str]) -> tuple[Settings, RunFolder]:
    """Settings and folder that an environment names.

    Raises:
        SettingsError: it does not name them, or the configuration breaks a rule.
    """
    for name, what in (("EXFM_CONFIG", "the configuration file"), ("EXFM_RUN", "a run's folder")):
        if not environ.get(name):
            raise SettingsError(f"{name} is not set: it must be the path of {what}")
    settings = load(Path(environ["EXFM_CONFIG"]), dict(environ))
    return settings, RunFolder(Path(environ["EXFM_RUN"]))
