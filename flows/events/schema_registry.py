"""The Schema Registry: which schema an event was written with, and under which id ours is known.

Its client is imported when first asked for: other formats do without, and start sooner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.registry_settings import SchemaRegistry
from flows.settings import SettingsError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

LOGIN = "EXFM_SCHEMA_REGISTRY_LOGIN"
"""Environment variable with `user:password`."""
KEY_PASSWORD = "EXFM_SCHEMA_REGISTRY_KEY_PASSWORD"
"""Environment variable with the password of the client certificate's key."""
UNKNOWN = (404, 422)
"""HTTP status for an id that the registry does not know."""
KNOWN_IDS = 4096
"""Ids remembered, those that are unknown included: damaged messages may name any."""


class RegistryError(RuntimeError):
    """The registry does not answer, or refuses; the message names its address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterSchema:
    """A registered schema."""

    kind: str
    """AVRO, PROTOBUF or JSON."""
    text: str
    """Avro: JSON. Protobuf: the file's descriptor, serialised, in base64."""
    references: tuple[str, ...] = ()
    """Texts of the Avro schemas that it builds upon, each behind those it needs itself."""


class Registry:
    """One registry, asked once for each schema."""

    def __init__(self, client: SchemaRegistryClient, settings: SchemaRegistry) -> None:
        self._client = client
        self._settings = settings
        self._schema = lru_cache(maxsize=KNOWN_IDS)(self._fetch)

    def schema(self, schema_id: int) -> WriterSchema | None:
        """The schema of an id; None if the registry knows none.

        Raises:
            RegistryError: it does not answer, or refuses.
        """
        return self._schema(schema_id)

    def register(self, topic: str, record: str, schema: WriterSchema) -> int:
        """The id of a schema, registered under the subject of a topic's values if it is new.

        Args:
            topic: that the events are written to.
            record: the schema's full name.
            schema: without references.

        Raises:
            RegistryError: no answer, or the schema is refused, e.g. as incompatible.
        """
        from confluent_kafka.schema_registry import Schema

        subject = subject_of(self._settings.subject, topic, record)
        return int(
            self._asked(
                f"cannot register subject {subject!r}",
                lambda: self._client.register_schema(subject, Schema(schema.text, schema.kind)),
            )
        )

    def _fetch(self, schema_id: int) -> WriterSchema | None:
        found = self._asked(
            f"cannot give schema {schema_id}",
            lambda: self._client.get_schema(schema_id, fmt="serialized"),
        )
        if found is None or found.schema_str is None:
            return None
        kind = found.schema_type or "AVRO"
        references = self._references(found, []) if kind == "AVRO" else []
        return WriterSchema(kind=kind, text=found.schema_str, references=tuple(references))

    def _references(self, schema: Schema, texts: list[str]) -> list[str]:
        for reference in schema.references or ():
            found = self._asked(
                f"cannot give version {reference.version} of subject {reference.subject!r}",
                lambda r=reference: self._client.get_version(r.subject, r.version).schema,
            )
            if found is not None and found.schema_str not in texts:
                self._references(found, texts)
                texts.append(found.schema_str)
        return texts

    def _asked(self, failure: str, ask: Any) -> Any:
        import httpx2
        from confluent_kafka.schema_registry import SchemaRegistryError

        where = f"schema registry {self._settings.url} {failure}"
        try:
            return ask()
        except SchemaRegistryError as error:
            if error.http_status_code in UNKNOWN and "register" not in failure:
                return None
            raise RegistryError(
                f"{where}: HTTP status {error.http_status_code}: {error.error_message}"
            ) from error
        except (httpx2.HTTPError, OSError) as error:
            raise RegistryError(f"{where}: it does not answer: {error}") from error


def subject_of(strategy: str, topic: str, record: str) -> str:
    """Name under which a topic's values are registered."""
    return {"topic": f"{topic}-value", "record": record, "topic_record": f"{topic}-{record}"}[
        strategy
    ]


@lru_cache(maxsize=8)
def connect(settings: SchemaRegistry) -> Registry:
    """The registry of a configuration; secrets come from the environment or from files.

    Raises:
        SettingsError: no address is configured, or a file cannot be read.
    """
    from confluent_kafka.schema_registry import SchemaRegistryClient

    if not settings.url:
        raise SettingsError("schema_registry.url must be set for formats avro and protobuf")
    try:
        client = SchemaRegistryClient.new_client(client_config(settings, os.environ))
    except OSError as error:
        raise SettingsError(f"schema_registry: a certificate cannot be read: {error}") from error
    return Registry(client, settings)


def client_config(settings: SchemaRegistry, environ: Mapping[str, str]) -> dict[str, Any]:
    """What confluent-kafka's client is told.

    Raises:
        SettingsError: a file cannot be read, or holds no login.
    """
    login = secret("login_file", settings.login_file, environ.get(LOGIN, ""))
    if login and ":" not in login:
        raise SettingsError(f"schema_registry: {LOGIN} or login_file must hold user:password")
    options = {
        "ssl.ca.location": settings.ca,
        "ssl.certificate.location": settings.certificate,
        "ssl.key.location": settings.key,
        "ssl.key.password": secret(
            "key_password_file", settings.key_password_file, environ.get(KEY_PASSWORD, "")
        ),
        "basic.auth.user.info": login,
    }
    given = {key: value for key, value in options.items() if value}
    return {"url": settings.url, "timeout": settings.timeout_s, **given}


def secret(name: str, file: str, given: str) -> str:
    """A secret of the environment, else of a file.

    Raises:
        SettingsError: the file cannot be read.
    """
    if given or not file:
        return given
    try:
        return Path(file).read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"schema_registry.{name} = {file!r} cannot be read") from error
