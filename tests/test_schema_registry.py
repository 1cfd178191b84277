"""How the registry is reached, what it is asked, and what stays secret."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from flows.events.schema_registry import (
    KEY_PASSWORD,
    LOGIN,
    RegistryError,
    WriterSchema,
    client_config,
    connect,
    subject_of,
)
from flows.registry_settings import SchemaRegistry
from flows.settings import SettingsError

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


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A registry's `host:port`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
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
    assert registry.schema(number + 1) is None


def test_login_is_sent_and_never_logged(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LOGIN, "user:s3cr3t")
    settings = SchemaRegistry(url=address)
    with caplog.at_level(logging.DEBUG):
        registry = connect(settings)
        assert registry.schema(1) == WriterSchema(kind="AVRO", text='"string"')
        assert registry.schema(2) is None
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


def test_subjects_are_named_as_confluent_names_them() -> None:
    names = [subject_of(s, "events", "exfm.R") for s in ("topic", "record", "topic_record")]
    assert names == ["events-value", "exfm.R", "events-exfm.R"]
