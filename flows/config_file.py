"""Writes settings as the TOML file that reads back as them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flows.settings import Settings


def dump(settings: Settings) -> str:
    """TOML of all that differs from a default; `flows.settings.load` gives equal settings."""
    tree = settings.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {inline(value)}" for key, value in tree.items() if key not in tables]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{quoted(k)} = {inline(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def inline(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    if isinstance(value, bool | str):
        return quoted(value) if isinstance(value, str) else str(value).lower()
    return repr(value)


def quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def seeded(settings: Settings, seed: int) -> Settings:
    """The same settings with every seed moved by `seed`: models, market and noise."""

    def moved(owner: Any) -> Any:
        learning = owner.learning.model_copy(update={"seed": owner.learning.seed + seed})
        return owner.model_copy(update={"learning": learning})

    return settings.model_copy(
        update={
            "teacher": moved(settings.teacher),
            "students": tuple(moved(student) for student in settings.students),
            "market": settings.market.model_copy(update={"seed": settings.market.seed + seed}),
            "noise": settings.noise.model_copy(update={"seed": settings.noise.seed + seed}),
        }
    )
