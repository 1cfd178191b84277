"""Trains the teacher (foundation model) on the examples of all domains, and publishes it.

python -m bytewax.run flows.fm_training:flow
"""

from __future__ import annotations

from bytewax.dataflow import Dataflow

from flows.environment import described
from flows.learning import training
from flows.learning.course import teacher_course
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings


def build(settings: Settings, folder: RunFolder) -> Dataflow:
    """The dataflow from examples to teacher snapshots."""
    return training.build("fm_training", settings, folder, [teacher_course(settings)])


def flow() -> Dataflow:
    """The dataflow of EXFM_CONFIG and EXFM_RUN."""
    return build(*described())


def run(settings: Settings, folder: RunFolder, placement: Placement) -> None:
    """Train until the log has ended or a signal asks to stop."""
    training.run(build(settings, folder), placement)
