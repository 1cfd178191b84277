"""Trains the students (vertical models) with their shadows, and publishes them.

    python -m bytewax.run flows.vm_training:flow

Each student is a source of its own, with its own checkpoint, and may run on another worker.
"""

from __future__ import annotations

from bytewax.dataflow import Dataflow

from flows.environment import described
from flows.learning import training
from flows.learning.course import student_course
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings


def build(settings: Settings, folder: RunFolder) -> Dataflow:
    """The dataflow from examples to student snapshots."""
    courses = [student_course(settings, student) for student in settings.students]
    return training.build("vm_training", settings, folder, courses)


def flow() -> Dataflow:
    """The dataflow of EXFM_CONFIG and EXFM_RUN."""
    return build(*described())


def run(settings: Settings, folder: RunFolder, placement: Placement) -> None:
    """Train until the log has ended or a signal asks to stop."""
    training.run(build(settings, folder), placement)
