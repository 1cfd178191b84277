"""The Schema Registry: which schema an event was written with, and under which id ours is known.

Its client is imported when first asked for: other formats do without, and start sooner.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.events.unknown_ids import UnknownIds
from flows.registry_settings import SchemaRegistry
from flows.settings import SettingsError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

LOGIN = "EXFM_SCHEMA_REGISTRY_LOGIN"
"""Environment variable with `user:password`."""
KEY_PASSWORD = "EXFM_SCHEMA_REGISTRY_KEY_PASSWORD"
"""Environment variable with the password of the client certificate's key."""
NO_SCHEMA, NO_SUBJECT, NO_VERSION, MOCK = 40403, 40401, 40402, 40400
"""Codes in a registry's answers; the last is what its client's mock says. The HTTP status 404 alone
says nothing of a schema: any server sends it, for a path that it does not know."""
MOST_ID = 2**31 - 1
"""A registry counts in signed numbers of 32 bits: it is not asked for others."""
KNOWN_SCHEMAS = 4096
"""Remembered."""
SHOWN = 200
"""Characters of an answer in messages: it may be a whole page."""
CHECK_URL = "schema_registry.url must be the registry's own address, with its path"
CHECK_LOGIN = "schema_registry.login_file or EXFM_SCHEMA_REGISTRY_LOGIN must name a user who may"
ADVICE = {status: f"; {CHECK_URL}" for status in (301, 302, 303, 307, 308, 404)} | {
    status: f"; {CHECK_LOGIN}" for status in (401, 403)
}


class RegistryError(RuntimeError):
    """The registry does not answer, or refuses; the message names its address."""


class UnknownSchema(LookupError):
    """The registry says that it knows no such schema, or none that it builds upon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterSchema:
    """A registered schema."""

    kind: str
    """AVRO, PROTOBUF or JSON."""
    text: str
    """Avro: JSON. Protobuf: the file's descriptor, serialised, in base64."""
    references: tuple[tuple[str, str], ...] = ()
    """Name and text of each schema that it builds upon, behind those that one needs itself; the
    name is Avro's full name, or the path by which a Protobuf file is imported."""


class Registry:
    """One registry, asked once for each schema that it knows."""

    def __init__(
        self,
        client: SchemaRegistryClient,
        settings: SchemaRegistry,
        unknown: UnknownIds | None = None,
    ) -> None:
        """Ask through a client.

        Args:
            client: of confluent-kafka.
            settings: that it was made of.
            unknown: keeps the ids that are not known.
        """
        self._client = client
        self._settings = settings
        self._unknown = unknown or UnknownIds(settings.url)
        self._schema = lru_cache(maxsize=KNOWN_SCHEMAS)(self._sought)

    def schema(self, schema_id: int) -> WriterSchema | None:
        """The schema of an id; None if the registry, asked several times, knows none.

        Raises:
            RegistryError: it does not answer, or refuses.
        """
        if schema_id > MOST_ID or schema_id in self._unknown:
            return None
        try:
            return self._schema(schema_id)
        except UnknownSchema:
            self._unknown.add(schema_id)
            return None

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
        ours = Schema(schema.text, schema.kind)
        number: int = self._asked(
            f"cannot register subject {subject!r}",
            lambda: int(self._client.register_schema(subject, ours)),
        )
        return number

    def _sought(self, schema_id: int) -> WriterSchema:
        for _ in self._unknown.tries(schema_id):
            try:
                return self._fetch(schema_id)
            except UnknownSchema:
                continue
        raise UnknownSchema(schema_id)

    def _fetch(self, schema_id: int) -> WriterSchema:
        found = self._asked(
            f"cannot give schema {schema_id}",
            lambda: with_text(self._client.get_schema(schema_id, fmt="serialized")),
            (NO_SCHEMA, MOCK),
        )
        kind, references = found.schema_type or "AVRO", dict[Any, tuple[str, str]]()
        if kind != "JSON":
            self._add_references(found, references)
        texts = tuple(references.values())
        return WriterSchema(kind=kind, text=found.schema_str, references=texts)

    def _add_references(self, schema: Schema, known: dict[Any, tuple[str, str]]) -> None:
        """Names and texts of what a schema builds upon, each behind those it needs.

        A version may be deleted: what was registered before goes on to build upon it.
        """
        for reference in schema.references or ():
            place = reference.subject, reference.version
            if place in known:
                continue
            found = self._asked(
                f"cannot give version {place[1]} of subject {place[0]!r}",
                partial(self._version, *place),
                (NO_SUBJECT, NO_VERSION, MOCK),
            )
            known[place] = "", ""  # not asked for again, should it build upon itself
            self._add_references(found, known)
            del known[place]
            known[place] = str(reference.name), str(found.schema_str)

    def _version(self, subject: Any, version: Any) -> Schema:
        found = self._client.get_version(subject, version, deleted=True, fmt="serialized")
        return with_text(found.schema)

    def _asked(self, failure: str, ask: Callable[[], Any], unknown: Sequence[int] = ()) -> Any:
        """What the registry answers.

        Args:
            failure: what was not to be had, for the message.
            ask: asks the client.
            unknown: codes of the answer that there is no such schema.

        Raises:
            UnknownSchema: that was the answer.
            RegistryError: it was another, or there was none.
        """
        import httpx2
        from confluent_kafka.schema_registry import SchemaRegistryError

        where = f"schema registry {self._settings.url} {failure}"
        try:
            return ask()
        except SchemaRegistryError as error:
            if error.error_code in unknown:
                raise UnknownSchema(failure) from error
            status, said = error.http_status_code, str(error.error_message)[:SHOWN]
            advice = ADVICE.get(status, "")
            raise RegistryError(f"{where}: HTTP status {status}: {said}{advice}") from error
        except (httpx2.HTTPError, OSError) as error:
            raise RegistryError(f"{where}: it does not answer: {error}") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            said = f"it answers with something else: {error!r}"[:SHOWN]
            raise RegistryError(f"{where}: {said}; {CHECK_URL}") from error


def with_text(schema: Schema) -> Schema:
    """A schema of an answer.

    Raises:
        ValueError: it has no text.
    """
    if not isinstance(schema.schema_str, str):
        raise ValueError("no schema")
    return schema


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
        SettingsError: a file cannot be read or holds no login, or a password has no certificate.
    """
    login = secret("login_file", settings.login_file, environ.get(LOGIN, ""))
    if login and ":" not in login:
        raise SettingsError(f"schema_registry: {LOGIN} or login_file must hold user:password")
    password = secret(
        "key_password_file", settings.key_password_file, environ.get(KEY_PASSWORD, "")
    )
    if password and not settings.certificate:
        raise SettingsError(f"{KEY_PASSWORD} needs schema_registry.certificate, which is not set")
    options = {
        "ssl.ca.location": settings.ca,
        "ssl.certificate.location": settings.certificate,
        "ssl.key.location": settings.key,
        "ssl.key.password": password,
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
