"""Where the Schema Registry is: the section `[schema_registry]` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from flows.durations import Seconds
from models.schema import Value


class SchemaRegistry(Value):
    """How to reach it; needed by topics of format avro or protobuf. Secrets never stand here."""

    url: str = ""
    """`http://` or `https://`; several, separated by commas, are tried in turn."""
    subject: Literal["topic", "record", "topic_record"] = "topic"
    """Names what the project's writers register: TOPIC-value, RECORD or TOPIC-RECORD."""
    ca: str = ""
    """File or folder of the authorities to trust; empty: those that certifi knows."""
    certificate: str = ""
    """The client's own, PEM."""
    key: str = ""
    """Of the certificate, PEM."""
    key_password_file: str = ""
    """Holds the key's password; the environment's EXFM_SCHEMA_REGISTRY_KEY_PASSWORD goes first."""
    login_file: str = ""
    """Holds `user:password`; the environment's EXFM_SCHEMA_REGISTRY_LOGIN goes first."""
    timeout_s: Annotated[Seconds, Field(le=3600)] = 10.0
    """For one answer, at most an hour; a request is tried four times."""

    @field_validator("url")
    @classmethod
    def _address_without_login(cls, url: str) -> str:
        for part in filter(None, url.split(",")):
            address = urlsplit(part.strip())
            if "@" in address.netloc:
                raise ValueError("must hold no login: use EXFM_SCHEMA_REGISTRY_LOGIN or login_file")
            if address.scheme not in ("http", "https", "mock") or not address.netloc:
                raise ValueError("must begin with http:// or https:// and name a host")
        return url

    @field_validator("key", "key_password_file")
    @classmethod
    def _beside_a_certificate(cls, file: str, info: ValidationInfo) -> str:
        if file and not info.data.get("certificate"):
            raise ValueError(f"needs schema_registry.certificate beside it, got {file!r} alone")
        return file
