"""What the labels of one impression lead to, one after the other: the policies in plain code."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any, NamedTuple

from flows.settings import Settings


class Label(NamedTuple):
    """A label of one impression, and when its shard could know it."""

    known: int
    ts: int
    value: int
    task: int


def random_tasks(rng: random.Random) -> list[dict[str, Any]]:
    """Three tasks of one or two windows, mostly with policies."""
    windows = sorted((rng.randint(1, 20), rng.randint(1, 120)))
    tasks: list[dict[str, Any]] = [
        {"name": "click", "window_s": windows[0], "oracle": "p_click"},
        {"name": "buy", "window_s": windows[1]},
        {"name": "like", "window_s": windows[rng.randint(0, 1)]},
    ]
    for task in tasks if rng.random() < 0.8 else ():
        task["early"] = rng.random() < 0.5
        for key in ("late_labels", "repeated_labels"):
            task[key] = rng.choice(("drop", "correct"))
        if task["window_s"] > windows[0] and rng.random() < 0.7:
            task["given"] = "click"
    return tasks


def outcomes(
    config: Settings, k: int, shown: int, born: int, labels: list[Label]
) -> list[tuple[int, int, bool]]:
    """What the labels of one impression lead to for a task: (time, label, own row), in order.

    The number in the list is the correction number. Labels are taken one after the other, as they
    become known.
    """
    task, out, seen = config.tasks[k], list[tuple[int, int, bool]](), defaultdict[int, Any](list)
    g = [t.name for t in config.tasks].index(task.given) if task.given else k
    end, force = shown + task.window_ms, {k: 0, g: 0}
    mine = [x for x in labels if x.task in (k, g) and x.ts >= shown]
    mine.sort(key=lambda x: (x.known, x.task == k, x.ts, x.value))
    for x in mine:
        rule = config.tasks[x.task]
        if max(x.ts + 1, x.known) > shown + rule.window_ms:
            continue
        seen[x.task].append((x.ts, x.value))
        newest = rule.repeated_labels == "correct"
        stays = rule.early and not newest and force[x.task]
        force[x.task] = x.value if newest else 1 if stays else min(seen[x.task])[1]
        time = max(x.known, born)
        if not out and task.early and force[k] and force[g] and time < end:
            out.append((time, 1, True))
        elif out and x.task == k and newest and x.value != out[-1][1]:
            out.append((time, x.value, True))
    if not out:
        given_end = shown + config.tasks[g].window_ms
        if not force[g] and given_end >= born:
            end = given_end  # a known negative
        if born > end:
            return []
        out.append((end, force[k] and force[g], False))
    for x in mine:
        late = x.task == k and max(x.ts + 1, x.known) > end and task.late_labels == "correct"
        in_time = x.known < end + config.das.correction_horizon_ms
        if late and in_time and x.value != out[-1][1]:
            out.append((max(x.known, born), x.value, True))
    return out
