"""The join without recovery, to measure what recovery costs: `... unsaved CONFIG RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.das import kafka_flow
from flows.run.process import announced, configure_logging
from flows.run_folder import RunFolder
from flows.runner import Placement, run_flow
from flows.settings import load

EPOCH_S = 24 * 3600.0
"""No snapshot is taken before its end."""


def main() -> None:
    """Run until the log has ended."""
    config, root = map(Path, sys.argv[1:])
    configure_logging()
    settings, folder = load(config), RunFolder(root)
    das = settings.das.model_copy(update={"recovery_every_s": EPOCH_S})
    settings = settings.model_copy(update={"das": das})
    with announced(folder, "das"):
        flow = kafka_flow(settings, folder.state / "das")
        run_flow(flow, Placement(), recovery=None, epoch_s=EPOCH_S)


if __name__ == "__main__":
    main()
