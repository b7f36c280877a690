"""The look at buckets: its signature. What a store answers is in tests/integration/test_object_store.py."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_hydrogen.contract.errors import StoreRefusedError, StoreUnreachableError
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks import buckets

NOW = datetime.datetime(2026, 11, 28, 5, 6, 7, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    "fields",
    [
        {"endpoint_url": "http://127.0.0.1:7070"},
        {"region": "eu-west-1", "session_token": "t/o+k=en"},
        {"endpoint_url": "https://s3.example.com", "virtual_hosts": True, "region": "x"},
    ],
)
def test_requests_are_signed_as_amazons_own_client_signs_them(fields: dict[str, Any], monkeypatch):
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    access = S3Access(conn_id="lake", access_key="AKIA", secret_key="hu/sh", **fields)
    address = buckets._address(access, "lake.eu")
    ours = buckets._signed(access, address, NOW)

    monkeypatch.setattr(auth, "get_current_datetime", lambda remove_tzinfo=True: NOW)
    request = AWSRequest("GET", address, params={"list-type": "2", "max-keys": "1"})
    # As over HTTPS the body of a request needs not be signed, and ours is.
    request.context["payload_signing_enabled"] = True
    credentials = Credentials("AKIA", "hu/sh", access.session_token)
    signer = auth.S3SigV4Auth(credentials, "s3", access.known_region or "us-east-1")
    signer.add_auth(request)
    assert ours["Authorization"].replace(",", ", ") == request.headers["Authorization"]


def test_without_keys_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(buckets, "_ask", lambda *_: pytest.fail("it asks"))
    buckets.require_open(S3Access(conn_id="role"), {"lake": "s3://lake/x"}, same_host=True)


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[S3Access]:
    """Access to a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            yield S3Access(conn_id="lake", access_key="A", secret_key="B", endpoint_url=address)
        finally:
            server.shutdown()
            serving.join()


def ask(access: S3Access, *, same_host: bool = True) -> None:
    buckets.require_open(access, {"lake": "s3://lake/x"}, same_host=same_host)


def code(name: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>hush</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, code("InvalidAccessKeyId"), "there is no such access key"),
        (403, code("SignatureDoesNotMatch"), "the secret key .* is not that of the access key"),
        (400, code("ExpiredToken"), "its aws_session_token has expired"),
        (404, code("NoSuchBucket"), r"there is no such bucket \(NoSuchBucket, asked for s3://lake/x\)"),
        (200, b"<html>a console</html>", "what answers there is no S3"),
    ],
)
def test_what_is_certain_is_an_error(status: int, body: bytes, message: str):
    with answering(status, {}, body) as access, pytest.raises(StoreRefusedError, match=message) as raised:
        ask(access, same_host=False)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, b"<ListBucketResult/>"),
        (403, {}, code("AccessDenied")),
        (503, {}, code("SlowDown")),
        (502, {}, b"a proxy"),
        (307, {"Location": "http://127.0.0.1:1/"}, code("TemporaryRedirect")),
    ],
)
def test_what_is_not_certain_is_none(status: int, headers: dict[str, str], body: bytes):
    with answering(status, headers, body) as access:
        ask(access)


def test_nobody_there_is_an_error_where_the_driver_would_find_nobody_either():
    with answering(200, {}, b"") as access:
        pass
    with pytest.raises(StoreUnreachableError, match="does not answer: .*refused"):
        ask(access)
    ask(access, same_host=False)


def test_something_that_speaks_no_http_is_nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            line, _ = server.accept()
            with line:
                line.recv(4096)
                line.sendall(b"220 mail.example.com ESMTP\r\n")

        speaking = threading.Thread(target=speak)
        speaking.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        access = S3Access(conn_id="lake", access_key="A", secret_key="B", endpoint_url=address)
        with pytest.raises(StoreUnreachableError, match="does not answer: 220 mail"):
            ask(access)
        speaking.join()


@pytest.mark.parametrize(
    ("region", "host"),
    [(None, "s3.us-east-1.amazonaws.com"), ("cn-north-1", "s3.cn-north-1.amazonaws.com.cn")],
)
def test_amazons_hosts_go_by_region(region: str | None, host: str):
    assert buckets._address(S3Access(conn_id="lake", region=region), "b") == f"https://{host}/b"


def test_an_endpoint_whose_host_can_be_none_is_told():
    access = S3Access(conn_id="lake", access_key="A", secret_key="B", endpoint_url="http://a..b")
    with pytest.raises(StoreUnreachableError, match=r"http://a\.\.b.*label"):
        buckets.require_open(access, {"bucket": "s3://bucket/x"}, same_host=True)
