"""Headers of messages, whose names may be any bytes."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Message


def headers_of(message: Message) -> dict[str, Any]:
    """Values by name, of one name the last; none of all if the name of one is not UTF-8."""
    try:
        return dict(message.headers() or ())
    except (SystemError, UnicodeDecodeError):  # the client does not outlive a second try
        message.set_headers([])
        return {}
