"""How the registry is reached, what it is asked, and what stays secret."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from flows.events.framed_events import FramedParser
from flows.events.schema_registry import (
    CHECK_LOGIN,
    CHECK_URL,
    KEY_PASSWORD,
    LOGIN,
    Registry,
    RegistryError,
    WriterSchema,
    client_config,
    connect,
    subject_of,
)
from flows.events.unknown_ids import (
    MOST_IDS,
    MOST_TOLD,
    PAUSES_S,
    REST_S,
    UNKNOWN_S,
    UnknownIds,
)
from flows.events.wire_format import prefix
from flows.registry_settings import SchemaRegistry
from flows.settings import SettingsError, load

SCHEMA = WriterSchema(kind="AVRO", text='{"type":"record","name":"R","fields":[]}')


class Answers(BaseHTTPRequestHandler):
    """Knows schema 1, takes new ones for the topic `labels` only, asks readers for a login."""

    def do_GET(self) -> None:
        """Schemas by id."""
        if self.headers["Authorization"] != "Basic dXNlcjpzM2NyM3Q=":
            self.answer(401, b'{"error_code": 401, "message": "Unauthorized"}')
        elif self.path.startswith("/schemas/ids/1?"):
            self.answer(200, b'{"schema": "\\"string\\""}')
        elif self.path.startswith("/schemas/ids/5?"):
            self.answer(500, b'{"error_code": 50001, "message": "store is away"}')
        else:
            self.answer(404, b'{"error_code": 40403, "message": "Schema not found"}')

    def do_POST(self) -> None:
        """Registration."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/subjects/labels-value/versions"):
            assert (asked["schema"], asked["schemaType"]) == (SCHEMA.text, SCHEMA.kind)
            self.answer(200, b'{"id": 7}')
        else:
            self.answer(409, b'{"error_code": 409, "message": "incompatible with version 3"}')

    def answer(self, status: int, body: bytes) -> None:
        """Send JSON."""
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Prepared(Answers):
    """Gives one prepared answer a path, and keeps what was asked."""

    def __init__(self, answers: dict[str, tuple[int, bytes]], asked: list[str], *args: Any) -> None:
        self.answers, self.asked = answers, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        """What was prepared, else Confluent's answer for an id that is not known."""
        self.asked.append(self.path)
        self.answer(*self.answers.get(self.path, (404, b'{"error_code": 40403, "message": ""}')))

    do_POST = do_GET


@contextmanager
def serving(
    tls: ssl.SSLContext | None = None, handler: Callable[..., BaseHTTPRequestHandler] = Answers
) -> Iterator[str]:
    """A registry's `host:port`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def address() -> Iterator[str]:
    with serving() as place:
        yield f"http://{place}"


def certificate(folder: Path) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 that vouches for itself, and of its encrypted key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exfm")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"s3cr3t"),
    )
    (folder / "me.pem").write_bytes(made.public_bytes(pem))
    (folder / "me.key").write_bytes(private)
    return str(folder / "me.pem"), str(folder / "me.key")


def test_both_sides_show_their_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, "user:s3cr3t")
    monkeypatch.setenv(KEY_PASSWORD, "s3cr3t")
    pem, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pem)
    tls.load_cert_chain(pem, key, "s3cr3t")
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(tls) as place:
        url = f"https://{place}"
        registry = connect(SchemaRegistry(url=url, ca=pem, certificate=pem, key=key))
        assert registry.schema(1) == WriterSchema(kind="AVRO", text='"string"')
        with pytest.raises(RegistryError, match=f"{url} .* it does not answer: .*certificate"):
            connect(SchemaRegistry(url=url, certificate=pem, key=key)).schema(1)


def test_schema_is_registered_once_and_found_by_its_id() -> None:
    registry = connect(SchemaRegistry(url=f"mock://{uuid.uuid4().hex}"))
    number = registry.register("events", "exfm.R", SCHEMA)
    assert registry.register("events", "exfm.R", SCHEMA) == number
    assert registry.schema(number) == SCHEMA


def test_login_is_sent_and_never_logged(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LOGIN, "user:s3cr3t")
    settings = SchemaRegistry(url=address)
    with caplog.at_level(logging.DEBUG):
        registry = connect(settings)
        assert registry.schema(1) == WriterSchema(kind="AVRO", text='"string"')
    assert "s3cr3t" not in caplog.text + repr(settings) + repr(registry)
    assert "dXNlcjpzM2NyM3Q" not in caplog.text


def test_refusal_names_address_and_reason(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = connect(SchemaRegistry(url=address))
    with pytest.raises(
        RegistryError, match=rf"{address} cannot give schema 1: .*401.*Unauthorized"
    ):
        registry.schema(1)
    assert registry.register("labels", "exfm.R", SCHEMA) == 7
    with pytest.raises(RegistryError, match=r"'events-value': .*409: incompatible with version 3"):
        registry.register("events", "exfm.R", SCHEMA)


@contextmanager
def prepared(answers: dict[str, tuple[int, bytes]]) -> Iterator[tuple[Registry, list[str]]]:
    """A registry that answers so, without pauses, and the list of what it was asked."""
    asked: list[str] = []
    with serving(handler=partial(Prepared, answers, asked)) as place:
        settings = SchemaRegistry(url=f"http://{place}")
        client = SchemaRegistryClient({"url": settings.url, "max.retries": 0})
        yield Registry(client, settings, UnknownIds("here", pause=lambda _: None)), asked


BY_ID = "/schemas/ids/9?format=serialized"
PAGE = b"<html>default backend - 404</html>"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, PAGE, f"404: .*default backend.*; {CHECK_URL}"),
        (404, b"", f"404: .*; {CHECK_URL}"),
        (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}', f"Not Found; {CHECK_URL}"),
        (404, b"[]", "404"),
        (302, b"", f"302: .*; {CHECK_URL}"),
        (403, b'{"error_code": 40301, "message": "Denied"}', f"403: Denied; {CHECK_LOGIN}"),
        (422, b'{"error_code": 42202, "message": "Invalid"}', "422: Invalid$"),
        (503, PAGE, "503"),
        (200, PAGE, f"something else: JSONDecodeError.*; {CHECK_URL}"),
        (200, b"", f"something else: .*; {CHECK_URL}"),
        (200, b"[]", f"something else: .*; {CHECK_URL}"),
        (200, b"{}", f"something else: .*no schema.*; {CHECK_URL}"),
    ],
)
def test_answer_that_says_nothing_of_the_schema_is_an_error(
    status: int, body: bytes, said: str
) -> None:
    with prepared({BY_ID: (status, body)}) as (registry, asked):
        for _ in range(2):
            with pytest.raises(RegistryError, match=rf"http://.* cannot give schema 9: .*{said}"):
                registry.schema(9)
        assert set(asked) == {BY_ID}
    with (
        prepared({"/subjects/t-value/versions": (status, body)}) as (registry, _),
        pytest.raises(RegistryError, match="cannot register subject 't-value': "),
    ):
        registry.register("t", "r", SCHEMA)


def test_id_that_the_registry_does_not_know_is_asked_for_several_times() -> None:
    with prepared({}) as (registry, asked):
        assert registry.schema(9) is None
        assert asked == [BY_ID] * (1 + len(PAUSES_S))
        assert registry.schema(2**31) is None
        assert len(asked) == 1 + len(PAUSES_S)


def test_schema_that_a_follower_hears_of_late_costs_no_event() -> None:
    client = SchemaRegistryClient.new_client({"url": f"mock://{uuid.uuid4().hex}"})
    text = json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]})

    def hear(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            client.register_schema("s", Schema(text, "AVRO"))

    pauses: list[float] = []
    registry = Registry(client, SchemaRegistry(), UnknownIds("here", pause=hear))
    parser = FramedParser("avro", pa.schema([pa.field("a", pa.int64())]), registry)
    table, bad = parser.parse([prefix(1) + b"\x02"])
    assert (table["a"].to_pylist(), bad, pauses) == ([1], {}, list(PAUSES_S[:2]))


def test_unknown_ids_are_asked_for_again_but_do_not_take_all_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s, pauses = [100.0], list[float]()
    client = SchemaRegistryClient.new_client({"url": f"mock://{uuid.uuid4().hex}"})
    unknown = UnknownIds("here", clock=lambda: now_s[0], pause=pauses.append)
    registry = Registry(client, SchemaRegistry(), unknown)
    parser = FramedParser("avro", pa.schema([pa.field("a", pa.int64())]), registry)
    event = prefix(1) + b"\x02"
    for schema_id in (1, 1, 2):  # the second is not asked for, the third without pauses
        assert parser.parse([prefix(schema_id) + b"\x02"])[1] == {0: "unknown_schema"}
        assert pauses == list(PAUSES_S)
    text = json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]})
    client.register_schema("s", Schema(text, "AVRO"))
    assert parser.parse([event])[1] == {0: "unknown_schema"}
    now_s[0] += UNKNOWN_S
    assert parser.parse([event])[1] == {}
    assert pauses == list(PAUSES_S)
    now_s[0] += REST_S
    assert registry.schema(3) is None
    assert pauses == [*PAUSES_S, *PAUSES_S]
    told = [record.getMessage() for record in caplog.records]
    assert [text.count("here does not know schema") for text in told] == [1, 1, 1]


def test_log_is_not_filled_with_unknown_ids(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownIds("here", clock=lambda: 0.0)
    for _ in range(2):
        for schema_id in range(MOST_IDS):
            unknown.add(schema_id)
    assert len(caplog.records) == MOST_TOLD
    assert all(schema_id in unknown for schema_id in range(MOST_IDS))
    unknown.add(MOST_IDS)
    assert (0 in unknown, MOST_IDS in unknown) == (False, True)


REFERRING = {
    "schema": '"shop.A"',
    "references": [{"name": "shop.A", "subject": "a b", "version": 3}],
}
REFERENCE = "/subjects/a%20b/versions/3?deleted=true&format=serialized"


def test_deleted_version_that_a_schema_builds_upon_is_read() -> None:
    version = {
        "subject": "a b",
        "version": 3,
        "id": 1,
        **REFERRING,
        "schema": '"int"',
    }  # and itself
    answers = {BY_ID: (200, json.dumps(REFERRING).encode())}
    answers[REFERENCE] = (200, json.dumps(version).encode())
    with prepared(answers) as (registry, asked):
        found = WriterSchema(kind="AVRO", text='"shop.A"', references=(("shop.A", '"int"'),))
        assert registry.schema(9) == found
        assert asked == [BY_ID, REFERENCE]


def test_schema_that_builds_upon_an_unknown_one_is_unknown() -> None:
    answers = {BY_ID: (200, json.dumps(REFERRING).encode())}
    for code in (40401, 40402):
        answers[REFERENCE] = (404, b'{"error_code": %d, "message": "gone"}' % code)
        with prepared(answers) as (registry, _):
            assert registry.schema(9) is None
    answers[REFERENCE] = (404, PAGE)
    with (
        prepared(answers) as (registry, _),
        pytest.raises(RegistryError, match=r"cannot give version 3 of subject 'a b': .*404"),
    ):
        registry.schema(9)


def test_silent_registry_is_an_error_that_names_its_address() -> None:
    registry = connect(SchemaRegistry(url="http://127.0.0.1:1", timeout_s=1))
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:1 .* it does not answer"):
        registry.schema(1)


def test_secrets_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    login, password = tmp_path / "login", tmp_path / "password"
    login.write_text("file:one\n")
    password.write_text("two\n")
    settings = SchemaRegistry(
        url="https://registry:8081",
        ca="ca.pem",
        certificate="me.pem",
        key="me.key",
        login_file=str(login),
        key_password_file=str(password),
    )
    expected = {
        "url": "https://registry:8081",
        "timeout": 10.0,
        "ssl.ca.location": "ca.pem",
        "ssl.certificate.location": "me.pem",
        "ssl.key.location": "me.key",
        "ssl.key.password": "two",
        "basic.auth.user.info": "file:one",
    }
    assert client_config(settings, {}) == expected
    environ = {LOGIN: "env:three", KEY_PASSWORD: "four"}
    assert client_config(settings, environ) == {
        **expected,
        "ssl.key.password": "four",
        "basic.auth.user.info": "env:three",
    }


def test_unusable_configuration_says_which_key(tmp_path: Path) -> None:
    (tmp_path / "login").write_text("s3cr3t")
    url = "http://registry"
    for settings, message in (
        (SchemaRegistry(), "schema_registry.url must be set"),
        (SchemaRegistry(url=url, login_file="missing"), "login_file = 'missing' cannot be read"),
        (SchemaRegistry(url=url, login_file=str(tmp_path / "login")), "must hold user:password"),
        (SchemaRegistry(url=url, ca="missing.pem"), "a certificate cannot be read"),
    ):
        with pytest.raises(SettingsError, match=message) as found:
            connect(settings)
        assert "s3cr3t" not in str(found.value)


@pytest.mark.parametrize("url", ["http://user:s3cr3t@registry", "registry:8081", "ftp://registry"])
def test_address_holds_no_login_and_is_one(url: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        SchemaRegistry(url=url)


@pytest.mark.parametrize("name", ["key", "key_password_file"])
def test_key_without_its_certificate_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "exfm.toml"
    path.write_text(f'[schema_registry]\n{name} = "me.key"\n')
    rule = "needs schema_registry.certificate beside it, got 'me.key' alone"
    with pytest.raises(SettingsError, match=rf"exfm\.toml: schema_registry\.{name}: {rule}"):
        load(path)


def test_password_without_a_certificate_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=rf"^{KEY_PASSWORD} needs schema_registry\.cert"
    ) as found:
        client_config(SchemaRegistry(url="https://registry"), {KEY_PASSWORD: "s3cr3t"})
    assert "s3cr3t" not in str(found.value)


def test_subjects_are_named_as_confluent_names_them() -> None:
    names = [subject_of(s, "events", "exfm.R") for s in ("topic", "record", "topic_record")]
    assert names == ["events-value", "exfm.R", "events-exfm.R"]
