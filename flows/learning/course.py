"""What one trainer is told: which rows, which model, when to publish."""

from __future__ import annotations

from dataclasses import dataclass

from flows.inference.teacher import MODEL
from flows.learning.training_rows import USER
from flows.settings import Settings, Student, Task
from models.online import OnlineLearner, build_student, build_teacher
from models.schema import Distillation, Encoding, Learning


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """One model to train."""

    model: str
    """Its name in the store, in checkpoints and metrics."""
    domains: tuple[str, ...]
    tasks: tuple[Task, ...]
    encoding: Encoding
    learning: Learning
    every_ms: int
    """Interval of event time between snapshots."""
    warmup_examples: int
    """No snapshot before this many labels of every task were learned."""
    learner: OnlineLearner
    shadow: OnlineLearner | None
    """The same without a teacher, on the same batches."""
    teaches: bool
    """Whether its snapshots score impressions for the others, which wait for its frontier."""

    has_users: bool
    """Whether rows name a user, so that GAUC can be measured."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Columns of its logits."""
        return tuple(task.name for task in self.tasks)

    @property
    def max_window_ms(self) -> int:
        """Longest time from an impression to its example."""
        return max(task.window_ms for task in self.tasks)


def teacher_course(settings: Settings) -> Course:
    """The foundation model: all domains, all tasks."""
    teacher, encoding = settings.teacher, settings.encoding(settings.teacher)
    names = [task.name for task in settings.tasks]
    return Course(
        model=MODEL,
        domains=settings.domains,
        tasks=settings.tasks,
        encoding=encoding,
        learning=teacher.learning,
        every_ms=teacher.snapshot_every_ms,
        warmup_examples=teacher.warmup_examples,
        learner=build_teacher(encoding, teacher.network, teacher.learning, names),
        shadow=None,
        teaches=True,
        has_users=names_user(settings),
    )


def student_course(settings: Settings, student: Student) -> Course:
    """A vertical model, with its shadow if it has one."""
    encoding = settings.encoding(student)
    by_name = {task.name: task for task in settings.tasks}

    def built(distillation: Distillation) -> OnlineLearner:
        return build_student(
            encoding, student.network, student.learning, distillation, student.tasks
        )

    return Course(
        model=student.name,
        domains=student.domains or settings.domains,
        tasks=tuple(by_name[name] for name in student.tasks),
        encoding=encoding,
        learning=student.learning,
        every_ms=student.snapshot_every_ms,
        warmup_examples=student.warmup_examples,
        learner=built(student.distillation),
        shadow=built(Distillation(mode="none")) if student.shadow else None,
        teaches=False,
        has_users=names_user(settings),
    )


def names_user(settings: Settings) -> bool:
    """Whether impressions have the feature that groups rows for GAUC."""
    return any(f.name == USER and f.kind == "categorical" for f in settings.features)
