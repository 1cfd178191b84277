"""Names that Kafka takes for topics; they are names of folders, too."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def legal(name: str) -> str:
    """The name; an error unless Kafka takes it."""
    if name in (".", "..") or LEGAL.fullmatch(name) is None:
        raise PydanticCustomError(
            "topic_name",
            "must be up to 249 of the letters a to z and A to Z, digits, '.', '_' and '-', "
            "and neither '.' nor '..'",
        )
    return name


TopicName = Annotated[str, AfterValidator(legal)]
